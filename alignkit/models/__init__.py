"""Running networks without learning: loading, packing, forward passes, sampling.

- `saved`, `loading`, `checked_model`: find a base model, read it, and check that it computes what
  alignkit expects.
- `shared_model`: one base with many roles. `adapters` and `memory` are parts of it, `whole_model` has no base.
- `packing`: from encoded groups to packs, the forward pass, and the batches that algorithms
  see.
- `generate`, `next_token`: responses.
- `models`: the policies and reward models of a run, for rewards, judges and steps.

Design: docs/architecture.md.
"""
