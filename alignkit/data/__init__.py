"""Groups, the only data object; files as numbered rows; and the sources that turn rows into groups.

Design: docs/architecture.md.
"""
