"""A frozen layer and the low-rank adapter on it, as one step: their sum is made in place, forward and backward.

Hu et al. 2021, equation 3: y = W x + s B A x. Written out, each of the sums reads and writes as much as the layer's
whole output, or its input on the way back, a second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.matmul import linear, packed_weight_for, times


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + b + scale (x down^T) up^T in the dtype of x; gradients reach x, down and up.

    x [..., inputs]; weight [outputs, inputs] and bias [outputs] frozen; down [rank, inputs], up [outputs, rank].
    """
    if (copy := packed_weight_for(up, x, bias)) is not None:
        return copy(x)
    if not torch.is_grad_enabled():  # few rows, as in sampling, gain nothing from one step
        return linear(x, weight, bias).add_(low_rank(x, down, up, scale))
    found: Tensor = _Adapted.apply(x, weight, bias, down, up, scale)
    # Here and not in the function: some models change what comes out in place, which a view made there forbids.
    return found.view(*x.shape[:-1], len(weight))


def low_rank(x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The adapter's part alone, scale (x down^T) up^T in the dtype of x, [..., outputs]."""
    return linear(linear(x, down.to(x.dtype)), _scaled(up, scale, x.dtype))


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, weight.shape[1])
        low = times(rows, down.to(x.dtype).t())
        out = linear(rows, weight, bias).addmm_(low, _scaled(up, scale, x.dtype).t())
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        gradient = upstream[0].reshape(-1, len(weight))
        to_low = times(gradient, _scaled(up, ctx.scale, x.dtype))
        to_x = to_down = to_up = None
        if ctx.needs_input_grad[0]:
            to_x = times(gradient, weight).addmm_(to_low, down.to(x.dtype)).view(x.shape)
        if ctx.needs_input_grad[3]:
            to_down = times(to_low.t(), x.reshape(-1, weight.shape[1])).to(down.dtype)
        if ctx.needs_input_grad[4]:
            # Not gradient^T low: transposing the larger factor takes twice as long.
            to_up = times(low.t(), gradient).t().to(up.dtype).mul_(ctx.scale)
        return to_x, None, None, to_down, to_up, None


def _scaled(up: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (up * scale).to(dtype)
