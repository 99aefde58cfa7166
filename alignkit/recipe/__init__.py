"""Turns a YAML file into a `Recipe`: reads, expands, validates and resolves it before anything
heavy is imported.

Design: docs/architecture.md.
"""
