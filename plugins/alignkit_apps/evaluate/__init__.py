"""Compares policies that are named on the command line, by a recipe with one step (docs/architecture.md)."""
