"""Feedback that can be shared: stores merged, rated, imported, and exported with consent (docs/architecture.md)."""
