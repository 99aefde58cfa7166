"""Runs stages again from their recorded inputs, and says whether the bytes are equal (docs/architecture.md)."""
