"""Fast operators for language models, and the only code that knows about processors.

- `layout`, `attention`, `decoding`: which tokens see which, in training and in sampling.
- `tiled_attention`, `matmul`, `lora`, `lm_head`: faster ways to compute what torch can compute too.
- `memory`: how much memory there is, and when to return freed memory to the system.
- `scoped`: what a pass reads without being given it.
- `capabilities`: what the processor and this build of torch can do.

Design: docs/architecture.md.
"""
