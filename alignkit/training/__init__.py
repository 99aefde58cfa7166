"""Training: the loop, the two kinds of training stage, scoring, checkpoints.

Design: docs/architecture.md.
"""
