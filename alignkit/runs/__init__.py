"""A run: stages in order, each reused, resumed or started. Design: docs/architecture.md."""
