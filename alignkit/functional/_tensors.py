"""Helpers that every formula uses: shape checks, wider dtypes, masks that keep garbage out of
gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Raise `ValueError` naming the first tensor whose shape differs from the first one's.

    Broadcasting would hide such a mistake.
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but {first} has {list(reference.shape)}; "
                "they must be equal"
            )


# Sums in another order differ by some units of the last digit, and a sum of 0 by those of its
# terms, which are about 1.
ROUNDING, ROUNDING_32 = 1e-12, 2.5e-7  # in float64, and in narrower numbers


def nearly_equal(x: Any, y: Any) -> Any:
    """Whether two numbers, or the entries of two tensors, differ by no more than rounding. False
    for nan.

    Args:
        x: A number or a tensor.
        y: The same shape.
    """
    if not isinstance(x, Tensor):
        return bool(x == y or abs(x - y) <= ROUNDING * (1 + min(abs(x), abs(y))))
    unit = ROUNDING if x.dtype == torch.float64 else ROUNDING_32
    return (x == y) | ((x - y).abs() <= unit * (1 + torch.minimum(x.abs(), y.abs())))


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it already is."""
    return x if x.dtype == torch.float64 else x.float()


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` with 0 wherever the mask is false; `x` itself without a mask.

    Multiplying by the mask would let inf * 0 = nan through, forward and backward.
    """
    if mask is None:
        return x
    check_shapes(x=x, mask=mask)
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def exponent(x: Tensor) -> Tensor:
    """`x` clamped so that exp stays finite (at 80 in float32, 639 in float64).

    An infinite exp would turn into 0 * inf = nan in the backward pass.
    """
    return x.clamp(max=0.9 * math.log(torch.finfo(x.dtype).max))
