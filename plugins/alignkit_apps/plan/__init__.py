"""What a recipe will take, found out without weights: rows, tokens, memory and time (docs/architecture.md)."""
