"""Products. In fp32 on AMD's processors they go to oneDNN: torch's default there, MKL, takes a quarter longer, on newer
ones and for few rows, as in sampling, twice as long. Everywhere else these are torch's own.

For many products of the same few rows, `PackedWeight` keeps a copy of a weight in the order in which the kernels read it.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FILLED = 8  # rows that a product by an ordered copy may take for one that it is asked for
LEAST = 2**20  # multiplications; for fewer, setting up the product takes longer than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`; x [..., inputs], weight [outputs, inputs], bias [outputs]."""
    if (copy := packed_weight_for(weight, x, bias)) is not None:
        return copy(x)
    if not _elsewhere(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Frozen.apply(x, weight, bias)
        return found
    return _product(x, weight, bias)


@torch.no_grad()
def times(a: Tensor, b: Tensor) -> Tensor:
    """a b without a gradient, [rows, inner] x [inner, columns]. With W for b it is the way back through `linear`."""
    return _product(a, b.t(), None) if _elsewhere(a, b.t(), None) else a @ b


class PackedWeight:
    """x W^T + b for up to `rows` rows, by a copy of a weight [outputs, inputs] in the kernels' own order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        self.bias, self.rows, self.outputs = bias, rows, len(weight)
        # An empty tensor has the weight's shape for MKL, which reads the weight itself for other numbers of rows only.
        self._shape = weight.new_empty(1).expand(weight.shape)
        reorder = torch.ops.mkldnn._reorder_linear_weight if by_onednn() else torch.ops.mkl._mkl_reorder_linear_weight
        self._ordered = reorder(weight.detach(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]; no gradient."""
        rows = x.reshape(-1, x.shape[-1])
        if by_onednn():
            out = _product(rows, self._ordered, self.bias)
        else:
            missing = self.rows - rows.shape[0]
            filled = F.pad(rows, (0, 0, 0, missing)) if missing else rows
            out = torch.ops.mkl._mkl_linear(filled, self._ordered, self._shape, self.bias, self.rows)
            out = out[:-missing] if missing else out
        return out.view(*x.shape[:-1], self.outputs)


_copies: ContextVar[Mapping[int, PackedWeight]] = ContextVar("alignkit_copies")


@contextmanager
def using(copies: Mapping[int, PackedWeight]) -> Iterator[None]:
    """Inside, products without gradients use these copies, each by the `id` of the parameter that names it."""
    token = _copies.set(copies)
    try:
        yield
    finally:
        _copies.reset(token)


def packed_weight_for(parameter: Tensor, x: Tensor, bias: Tensor | None) -> PackedWeight | None:
    """The copy in use for products of x with this parameter, plus this bias, if there is one and so many rows suit it:
    where nearly all have left, those that are filled up cost more than the order saves.
    """
    found = _copies.get({}).get(id(parameter))
    if found is None or torch.is_grad_enabled() or found.bias is not bias:
        return None
    return found if found.rows <= FILLED * (x.numel() // x.shape[-1]) <= FILLED * found.rows else None


@functools.cache
def can_order() -> bool:
    """Whether this build of torch can make such copies."""
    if by_onednn():
        return hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")


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
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # a part of a larger matrix would be multiplied number by number
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or x.numel() * len(weight) < LEAST:
        return False
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    return not (learned and torch.is_grad_enabled()) and by_onednn()


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16.

    oneDNN says that it supports bf16 also where it converts every number first, which takes four times as long as fp32.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        if platform.machine() == "aarch64":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    told = torch.cpu.get_capabilities()
    return any(told.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))


@functools.cache
def by_onednn() -> bool:
    """Whether products in fp32 go to oneDNN."""
    return amd() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def amd() -> bool:
    """By the processor's name, not by trying: a run that continues must round as before."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
