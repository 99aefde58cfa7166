"""LoRA (Hu et al. 2021): what an adapter adds to a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """A layer's adapter, scale B A (equation 3).

    down: A, [rank, inputs]. up: B, [outputs, rank]. Both may be wider than what the layer computes
    in.
    """

    down: Tensor
    up: Tensor
    scale: float

    def term(self, x: Tensor, linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What it adds, scale (x A^T) B^T, [..., outputs] in the dtype of x."""
        return linear(linear(x, self.down.to(x.dtype)), self.scaled_up(x.dtype))

    def scaled_up(self, dtype: torch.dtype) -> Tensor:
        """The factor is in the small matrix, before rounding, and not in [rows, outputs]."""
        return (self.up * self.scale).to(dtype)


def lora_layers(model: Any) -> list[Any]:
    """The layers with adapters."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
