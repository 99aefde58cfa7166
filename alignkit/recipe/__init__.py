"""Turns a YAML file into a `Recipe`: reads, expands, validates and resolves it before anything
heavy is imported. Its sources read the rows that data entries name.

Design: docs/architecture.md.
"""
