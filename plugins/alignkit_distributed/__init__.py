"""Several processes that run one recipe together: started by accelerate, alike in what they run, and ended as one.

`events` registers the launcher `accelerate`, which `alignkit run` asks for only if there are several processes.

Design: docs/architecture.md. How to use it: docs/processes.md.
"""
