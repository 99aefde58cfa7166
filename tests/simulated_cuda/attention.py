"""Attention of the simulated device: `scaled_dot_product_attention` with kernels as torch 2.13 has
on an H100 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp), and `flex_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from device import CudaTensor, device, place
from flex import dense, seen
from torch import Tensor
from torch.autograd.function import once_differentiable

_on_cpu = torch.nn.functional.scaled_dot_product_attention


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether a kernel stores no scores, for [rows, heads, tokens, size] each."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    flash = half and mask is None and q.shape[-1] == v.shape[-1]
    return flash or (q.shape[1] == k.shape[1] and q.shape[-1] % (8 if half else 4) == 0)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """torch's function."""
    given = [x for x in (query, key, value, attn_mask) if x is not None]
    if not any(isinstance(x, CudaTensor) for x in given):
        return _on_cpu(query, key, value, attn_mask, **options)
    check_device(given)
    device.attention["fused" if fused(query, key, value, attn_mask) else "math"] += 1
    added = None
    if attn_mask is not None:
        converts = attn_mask.dtype == torch.bool and query.requires_grad
        device.converted_masks += converts and torch.is_grad_enabled()
        mask = attn_mask.elem  # type: ignore[attr-defined]
        added = mask if mask.dtype == torch.bool else mask.float()

    def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _on_cpu(q.float(), k.float(), v.float(), added, **options)
        return out.to(q.dtype)

    result: Tensor = _Kernel.apply(compute, query, key, value)
    return result


def check_device(given: list[Any]) -> None:
    if not all(isinstance(x, CudaTensor) for x in given):
        raise RuntimeError(
            f"Expected query, key, value and mask on the same device (attention at {place()})"
        )


class _Kernel(torch.autograd.Function):
    """A kernel that stores its inputs and its result, and no scores. compute: its numbers, on the
    CPU.
    """

    @staticmethod
    def forward(ctx: Any, compute: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.compute = compute
        numbers = compute(*(x.elem for x in inputs)).detach()
        return CudaTensor(numbers.transpose(1, 2).contiguous().transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        numbers = [x.elem.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            gradients = torch.autograd.grad(ctx.compute(*numbers), numbers, upstream[0].elem)
        return (None, *map(CudaTensor, gradients))


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function as compiled: one kernel."""
    check_device([query, key, value, block_mask.kv_indices])
    device.attention["flex"] += 1
    before = device.waits.copy()
    sees = seen(block_mask)  # what the kernel computes inside
    device.waits = before

    def compute(*inputs: Tensor) -> Tensor:
        return dense(*inputs, score_mod, None, scale, enable_gqa, sees=sees)

    result: Tensor = _Kernel.apply(compute, query, key, value)
    return result
