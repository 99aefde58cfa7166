"""Groups, the only data object, and files as numbered rows.

Design: docs/architecture.md.
"""
