"""Several processes that run one recipe together: started by accelerate, alike in what they run, and ended as one.

Design: docs/architecture.md. How to use it: docs/processes.md.
"""
