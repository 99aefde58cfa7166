"""Running networks without learning: loading, packing, forward passes, sampling.

- `loading`, `hub`, `load_check`: find a base model, read it, and check that it computes what alignkit expects.
- `shared_model`: one base with many roles. `adapters`, `budget` and `recompute` are parts of it.
- `packing`, `examples`: from encoded groups to packed rows, and the batches that algorithms see.
- `forward`: the forward pass of training and measuring.
- `sampling`, `next_token`: responses.
- `service`: the models, for rewards, judges and steps. `foreign_reward`: reward models on another base.

Design: docs/architecture.md.
"""
