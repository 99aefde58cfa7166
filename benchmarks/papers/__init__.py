"""Claims of papers, tested again: `python -m benchmarks.papers NAME` computes the rows of a claim
that are missing, and docs/papers shows them. See `claim.py`.
"""
