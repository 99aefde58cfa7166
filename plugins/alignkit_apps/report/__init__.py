"""What is said of a run from the files in its folder: its report in three formats, and comparisons of runs.

See docs/architecture.md.
"""
