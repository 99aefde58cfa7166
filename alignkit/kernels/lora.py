"""A frozen linear layer and its LoRA adapter in one step: y = W x + s B A x (Hu et al. 2021, equation 3).

The two terms are added in place, forward and backward. Separate operators would read and write the layer's whole
output, and in the backward pass its input's gradient, a second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels import mode
from alignkit.kernels.matmul import linear, matmul, packed_weight_for


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + b + scale (x down^T) up^T in the dtype of x, with gradients for x, down and up.

    x [..., inputs]; frozen weight [outputs, inputs] and bias [outputs]; down [rank, inputs], up [outputs, rank].
    """
    if (packed := packed_weight_for(up, x, bias)) is not None:
        return packed(x)
    if not torch.is_grad_enabled():  # the few rows of sampling gain nothing from one step
        return linear(x, weight, bias).add_(low_rank(x, down, up, scale))
    if mode() == "torch":
        return linear(x, weight, bias) + low_rank(x, down, up, scale)
    out: Tensor = _Adapted.apply(x, weight, bias, down, up, scale)
    # Reshaped outside the function: some models clamp the output in place, which autograd forbids on its views.
    return out.view(*x.shape[:-1], len(weight))


def low_rank(x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The adapter's own term, scale (x down^T) up^T, [..., outputs] in the dtype of x."""
    return linear(linear(x, down.to(x.dtype)), _scaled(up, scale, x.dtype))


class _Adapted(torch.autograd.Function):
    """`adapted` on flattened rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, weight.shape[1])
        low = matmul(rows, down.to(x.dtype).t())  # [rows, rank]
        out = linear(rows, weight, bias).addmm_(low, _scaled(up, scale, x.dtype).t())
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        gradient = upstream[0].reshape(-1, len(weight))
        # [rows, rank], with the scale in it; only the gradient of `up` still lacks it.
        low_gradient = matmul(gradient, _scaled(up, ctx.scale, x.dtype))
        x_gradient = down_gradient = up_gradient = None
        # Arguments 0, 3 and 4 are x, down and up; weight and bias are frozen.
        if ctx.needs_input_grad[0]:
            x_gradient = matmul(gradient, weight).addmm_(low_gradient, down.to(x.dtype)).view(x.shape)
        if ctx.needs_input_grad[3]:
            down_gradient = matmul(low_gradient.t(), x.reshape(-1, weight.shape[1])).to(down.dtype)
        if ctx.needs_input_grad[4]:
            # Not gradient^T low: transposing the larger factor takes twice as long.
            up_gradient = matmul(low.t(), gradient).t().to(up.dtype).mul_(ctx.scale)
        return x_gradient, None, None, down_gradient, up_gradient, None


def _scaled(up: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    # The factor goes into the small matrix, before rounding, and not into [rows, outputs].
    return (up * scale).to(dtype)
