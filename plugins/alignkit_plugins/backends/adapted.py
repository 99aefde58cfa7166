"""A frozen linear layer and its LoRA adapter in one step: y = W x + s B A x (Hu et al. 2021,
equation 3).

The two terms are added in place, forward and backward. Separate operators would read and write the
layer's whole output, and in the backward pass its input's gradient, a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.backends import LowRank

Product = Callable[..., Tensor]  # x, weight, bias -> x W^T + b


def adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: LowRank, product: Product
) -> Tensor:
    """See `Backend.linear`; with gradients for x and the adapter's factors."""
    out: Tensor = _Adapted.apply(x, weight, bias, *adapter, product)
    # Reshaped outside the function: some models clamp the output in place, which autograd forbids
    # on its views.
    return out.view(*x.shape[:-1], len(weight))


class _Adapted(torch.autograd.Function):
    """`adapted` on flattened rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        product: Product,
    ) -> Tensor:
        rows = x.reshape(-1, weight.shape[1])
        low = product(rows, down.to(x.dtype))  # [rows, rank]
        scaled_up = LowRank(down, up, scale).scaled_up(x.dtype)
        out = product(rows, weight, bias).addmm_(low, scaled_up.t())
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale, ctx.product = scale, product
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        product: Product = ctx.product
        gradient = upstream[0].reshape(-1, len(weight))
        # [rows, rank], with the scale in it; only the gradient of `up` still lacks it.
        low_gradient = product(gradient, LowRank(down, up, ctx.scale).scaled_up(x.dtype).t())
        x_gradient = down_gradient = up_gradient = None
        # Arguments 0, 3 and 4 are x, down and up; weight and bias are frozen.
        if ctx.needs_input_grad[0]:
            x_gradient = product(gradient, weight.t()).addmm_(low_gradient, down.to(x.dtype))
            x_gradient = x_gradient.view(x.shape)
        if ctx.needs_input_grad[3]:
            rows = x.reshape(-1, weight.shape[1])
            down_gradient = product(low_gradient.t(), rows.t()).to(down.dtype)
        if ctx.needs_input_grad[4]:
            # Not gradient^T low: transposing the larger factor takes twice as long.
            up_gradient = product(low.t(), gradient.t()).t().to(up.dtype).mul_(ctx.scale)
        return x_gradient, None, None, down_gradient, up_gradient, None, None
