"""Writes a recipe to start from (docs/architecture.md)."""
