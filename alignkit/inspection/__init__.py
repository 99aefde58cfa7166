"""What a stage will see, shown before it runs."""
