"""What a recipe will do, found out without weights: how rows are read, and what a run takes (docs/architecture.md)."""
