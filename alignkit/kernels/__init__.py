"""What language models compute, by torch's own operators; plugins know about processors.

- `layout`, `attention`, `plain_attention`, `decoding`: which tokens see which, in training and in
  sampling.
- `lm_head`: the probabilities of the next token.
- `backends`: the choice of what computes all of this.
- `memory`: how much memory there is, and when to return freed memory to the system.

Design: docs/architecture.md.
"""
