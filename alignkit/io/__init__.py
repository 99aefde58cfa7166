"""Atomic files, digests, the cache folder, and console output. Design: docs/architecture.md."""
