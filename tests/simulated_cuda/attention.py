"""`scaled_dot_product_attention` of the simulated device, with the kernel that torch chooses on an
H100.

The rules are those of torch 2.13 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from device import CudaTensor, device, place
from flex import dense, seen
from torch import Tensor
from torch.autograd.function import once_differentiable

_on_cpu = torch.nn.functional.scaled_dot_product_attention


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> str:
    """cudnn, flash, efficient or math, for [rows, heads, tokens, size] each."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    size, size_v, grouped = q.shape[-1], v.shape[-1], q.shape[1] != k.shape[1]
    if not all(x.dim() == 4 and x.stride(-1) == 1 and x.shape[2] for x in (q, k, v)):
        return "math"
    small = max(size, size_v) <= 128 and size % 8 == size_v % 8 == 0
    if torch.backends.cuda.cudnn_sdp_enabled() and half and small and k.shape[2] != 1:
        return "cudnn"
    if half and mask is None and size == size_v <= 256 and (not causal or q.shape[2] == k.shape[2]):
        return "flash"
    aligned = (8 if half else 4) if q.dtype != torch.float64 else 0
    if aligned and not grouped and size % aligned == size_v % aligned == 0:
        return "efficient"
    return "math"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function, [rows, heads, tokens, size] each; counts the kernels of tensors on the
    device.
    """
    given = [x for x in (query, key, value, attn_mask) if x is not None]
    here = [isinstance(x, CudaTensor) for x in given]
    if not any(here):
        return _on_cpu(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if not all(here):
        raise RuntimeError(
            f"Expected query, key, value and mask on the same device (attention at {place()})"
        )
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise RuntimeError(
            f"the heads of queries and keys differ without enable_gqa (attention at {place()})"
        )
    chosen = kernel(query, key, value, attn_mask, is_causal)
    device.attention[chosen] += 1
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:  # as torch does, in every call
        device.converted_masks += torch.is_grad_enabled() and query.requires_grad
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(
            mask.logical_not(), float("-inf")
        )
    if chosen == "math":
        return _math(query, key, value, mask, is_causal, scale)
    numbers = None if mask is None else mask.elem  # type: ignore[attr-defined]

    def compute(*inputs: Tensor) -> Tensor:
        return _numbers(*inputs, numbers, is_causal, scale)

    result: Tensor = _Kernel.apply(compute, 3, query, key, value)
    return result


def _math(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Attention by operators that store all scores."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        sees = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~sees, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1) @ v


def _numbers(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """The same on the CPU, in fp32 inside, as fused kernels compute it."""
    grouped = q.shape[1] != k.shape[1]
    mask = None if mask is None else mask.float()
    inner = [x if x.dtype == torch.float64 else x.float() for x in (q, k, v)]
    return _on_cpu(*inner, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped).to(
        q.dtype
    )


class _Kernel(torch.autograd.Function):
    """A kernel that stores its inputs and its result, and no scores. compute: its numbers, on the
    CPU. backward: kernels of its gradient.
    """

    @staticmethod
    def forward(ctx: Any, compute: Any, backward: int, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.compute, ctx.kernels = compute, backward
        device.launches += 1
        numbers = compute(*(x.elem for x in inputs)).detach()
        return CudaTensor(numbers.transpose(1, 2).contiguous().transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        device.launches += ctx.kernels
        numbers = [x.elem.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            gradients = torch.autograd.grad(ctx.compute(*numbers), numbers, upstream[0].elem)
        return (None, None, *map(CudaTensor, gradients))


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function as compiled: one kernel, and two for its gradient."""
    if not all(isinstance(x, CudaTensor) for x in (query, key, value, block_mask.kv_indices)):
        raise RuntimeError(
            f"Expected query, key, value and mask on the same device (attention at {place()})"
        )
    device.attention["flex"] += 1
    before = device.launches, device.waits, device.copies
    sees = seen(block_mask)  # what the kernel computes inside
    device.launches, device.waits, device.copies = before

    def compute(*inputs: Tensor) -> Tensor:
        return dense(*inputs, score_mod, None, scale, enable_gqa, sees=sees)

    result: Tensor = _Kernel.apply(compute, 2, query, key, value)
    return result
