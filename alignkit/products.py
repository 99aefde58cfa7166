"""Products with frozen weights. In fp32 on AMD's processors they go to oneDNN: torch's default there, MKL, takes a
quarter longer, and for few rows, as in sampling, twice as long. Everywhere else this is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 2**17  # elements of a weight; for smaller ones setting up the product takes longer than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`; x [..., inputs], weight [outputs, inputs], bias [outputs]."""
    if not _elsewhere(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Frozen.apply(x, weight, bias)
        return found
    return _product(x, weight, bias)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x W without a gradient; x [rows, outputs], weight [outputs, inputs]: the way back through `linear`."""
    return _product(x, weight.t(), None) if _elsewhere(x, weight, None) else x @ weight


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(upstream[0], weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or weight.numel() < LEAST:
        return False
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    return x.numel() > 0 and not (learned and torch.is_grad_enabled()) and _better()


@functools.cache
def _better() -> bool:
    """By the processor's name, not by trying: a run that continues must round as before."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
