"""Fast operators for language models, and the only code that knows about processors.

- `layout`, `attention`, `flex_attention`, `decoding`: which tokens see which, in training and in sampling.
- `tiled_attention`, `matmul`, `lora`, `lm_head`: faster ways to compute what torch can compute too.
- `memory`: how much memory there is, and when to return freed memory to the system.
- `capabilities`: what the processor and this build of torch can do.

The environment variable `ALIGNKIT_KERNELS` chooses between two sets of operators:

- `fast`, the default: the kernels above wherever they are faster on this machine.
- `torch`: torch's public operators only. There are no products by oneDNN, packed weights, tiles or fused LoRA steps,
  and no gradients written over the logits. Attention is `scaled_dot_product_attention`, or a plain softmax if the model
  caps its scores. The C library's allocator keeps its defaults.

Both compute the same values up to rounding, so use `torch` to rule the kernels out when numbers look wrong. Because the
last bits differ, the choice is part of stage hashes and of the reference cache's keys.

Design: docs/architecture.md.
"""

from __future__ import annotations

import functools
import os
from typing import Literal, cast

from alignkit.errors import Problem, RecipeError

VARIABLE = "ALIGNKIT_KERNELS"
MODES = ("fast", "torch")
Mode = Literal["fast", "torch"]


@functools.cache
def mode() -> Mode:
    """The value of `ALIGNKIT_KERNELS`, `fast` if unset; read once. Raises `RecipeError` for an unknown value."""
    value = os.environ.get(VARIABLE) or MODES[0]
    if value not in MODES:
        known = " or ".join(f"'{name}'" for name in MODES)
        raise RecipeError([Problem(f"{VARIABLE} is '{value}'; it must be {known}", help="unset it for 'fast'")])
    return cast(Mode, value)
