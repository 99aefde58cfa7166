"""Several processes that run one recipe together, started by accelerate's launcher or torchrun; and engines.

Design: docs/architecture.md. How to use it: docs/processes.md.
"""
