"""YAML -> Recipe: read, expanded, validated and resolved before anything heavy is imported.

Design: docs/architecture.md.
"""
