"""Copies of a role's weights for sampling, with its adapter merged in.

The calls of an adapter's two thin products take as long as the layer's own. On a CPU in fp32, a
product of a few rows could be as fast as reading the weight, but the libraries reorder the weight in
every call: there the copies are packed, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignkit.kernels.backends import LowRank, lora_layers


class PreparedWeight:
    """x W^T + b, without a gradient, by a copy of W, for any number of rows."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, made_of: Sequence[Tensor] = ()
    ):
        """rows: the most of a product. made_of: the adapter, which must not change while the copy is
        in use.
        """
        self.weight, self.bias, self.rows = weight, bias, rows
        self._versions = [(each, each._version) for each in made_of]

    def check(self) -> None:
        """Raise RuntimeError if a weight has changed since it was copied."""
        for weight, version in self._versions:
            if weight._version != version:
                raise RuntimeError("a weight was changed while its copy was in use for sampling")

    def suits(self, rows: int) -> bool:
        """Whether it is fast for this many rows."""
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight, self.bias)


# By the `id` of the parameter that they replace: the adapter's upper factor, which differs between
# adapters, or a weight without an adapter.
PREPARED: ContextVar[Mapping[int, PreparedWeight]] = ContextVar("alignkit_prepared_weights")


def prepared_for(parameter: Tensor, x: Tensor, bias: Tensor | None) -> PreparedWeight | None:
    """The weight that replaces this parameter, if one is in use, has this bias and suits the rows
    of x.

    Without a gradient only.
    """
    copy = PREPARED.get({}).get(id(parameter))
    if copy is None or torch.is_grad_enabled() or copy.bias is not bias:
        return None
    if not copy.suits(x.numel() // x.shape[-1]):
        return None
    copy.check()
    return copy


def plain_layers(model: Any) -> list[Any]:
    """The linear layers with adapters. Quantized ones are subclasses, and their weights are no
    plain matrices.
    """
    return [layer for layer in lora_layers(model) if type(layer.base_layer) is nn.Linear]


def merged(weight: Tensor, adapter: LowRank) -> Tensor:
    """A weight with an adapter in it, rounded once: the products of bf16 numbers would be rounded
    twice.
    """
    up, down = adapter.up.float(), adapter.down.float()
    return torch.addmm(weight.float(), up, down, alpha=adapter.scale).to(weight.dtype)
