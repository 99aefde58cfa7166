"""What a stage will see, shown before it runs (docs/architecture.md)."""
