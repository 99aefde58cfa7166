"""What people say about responses: items to label, append-only events, and the labels that count.

A store is one SQLite file. Design: docs/architecture.md.
"""
