"""Matrix products that use the faster of torch's two CPU libraries.

On AMD processors fp32 products go to oneDNN. MKL, torch's default there, takes a quarter longer,
and twice as long on newer processors or for the few rows of sampling. Everywhere else these
functions are torch's own.

A `PackedWeight` is a copy of a weight in the library's own order, for many products of a few rows
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit_plugins.backends import processor
from alignkit_plugins.backends.prepared import PreparedWeight

MAX_PADDING = 8  # a packed weight computes up to this many times the requested rows
MIN_MULTIPLICATIONS = 2**20  # below this, oneDNN's setup takes longer than its product saves


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x [..., inputs], weight [outputs, inputs], bias [outputs]."""
    if not _uses_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _FrozenLinear.apply(x, weight, bias)
        return result
    return _onednn_product(x, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    """`product` by oneDNN, with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn_product(upstream[0], weight.t(), None), None, None


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN, without a gradient; W may be packed."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN multiplies other strides by a slow reference loop
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _uses_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    small = x.numel() * len(weight) < MIN_MULTIPLICATIONS
    if small or not x.dtype == weight.dtype == torch.float32:
        return False
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    return not (learned and torch.is_grad_enabled()) and processor.uses_onednn()


class PackedWeight(PreparedWeight):
    """A packed copy of W [outputs, inputs], for up to `rows` rows."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, made_of: Sequence[Tensor] = ()
    ):
        # MKL also takes the weight itself but reads only its shape; an expanded scalar has it
        # without the memory.
        super().__init__(weight.new_empty(1).expand(weight.shape), bias, rows, made_of)
        self._onednn = processor.uses_onednn()
        mkl, onednn = torch.ops.mkl, torch.ops.mkldnn
        reorder = onednn._reorder_linear_weight if self._onednn else mkl._mkl_reorder_linear_weight
        self._packed = reorder(weight.detach(), rows)

    def suits(self, rows: int) -> bool:
        """False for far fewer rows: padding would cost more than packing saves."""
        return self.rows <= MAX_PADDING * rows <= MAX_PADDING * self.rows

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        rows = x.reshape(-1, x.shape[-1])
        if self._onednn:
            product = _onednn_product(rows, self._packed, self.bias)
        else:
            product = self._mkl_product(rows)
        return product.view(*x.shape[:-1], len(self.weight))

    def _mkl_product(self, x: Tensor) -> Tensor:
        missing = self.rows - len(x)
        padded = F.pad(x, (0, 0, 0, missing)) if missing else x
        product: Tensor = torch.ops.mkl._mkl_linear(
            padded, self._packed, self.weight, self.bias, self.rows
        )
        return product[: len(x)]
