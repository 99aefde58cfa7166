"""Shows a finished run in a tracker (docs/architecture.md)."""
