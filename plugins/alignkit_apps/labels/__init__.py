"""Labels of people: shown, measured, merged, rated, imported, and exported with consent (docs/architecture.md)."""
