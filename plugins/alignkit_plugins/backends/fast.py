"""What CPUs and GPUs do faster than the reference in the same way.

A frozen linear layer and its LoRA adapter are one step, y = W x + s B A x (Hu et al. 2021, equation
3), whose two terms are added in place, forward and backward. Separate operators would read and
write the layer's whole output, and in the backward pass its input's gradient, a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.errors import memory_ran_out
from alignkit.kernels import memory
from alignkit.kernels.backends import Backend, LowRank
from alignkit.kernels.layout import setting
from alignkit.kernels.lm_head import HeadSpec, NextToken, TokenWants
from alignkit_plugins.backends.frozen_head import logprobs_and_entropy
from alignkit_plugins.backends.prepared import (
    PREPARED,
    PreparedWeight,
    merged,
    plain_layers,
    prepared_for,
)

Product = Callable[..., Tensor]  # x, weight, bias -> x W^T + b
MIN_TOKENS = 16  # with fewer tokens per slot, copying weights takes longer than it saves


class Fast(Backend):
    """Adds an adapter in place, never holds all logits of a frozen head, and samples from copies of
    the weights.

    copy: of a weight, in which an adapter may be merged.
    """

    copy: ClassVar[type[PreparedWeight]] = PreparedWeight

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b, with a gradient for x and what learns."""
        return F.linear(x, weight, bias)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, adapter: LowRank | None = None
    ) -> Tensor:
        """See `Backend.linear`."""
        copy = prepared_for(weight if adapter is None else adapter.up, x, bias)
        if copy is not None:
            return copy(x)
        if adapter is None:
            return self.product(x, weight, bias)
        if not torch.is_grad_enabled():  # the few rows of sampling gain nothing from one step
            return self.product(x, weight, bias).add_(adapter.term(x, self.product))
        return adapted(x, weight, bias, adapter, self.product)

    def next_token(
        self, hidden: Tensor, tokens: Tensor, head: HeadSpec, wants: TokenWants
    ) -> NextToken:
        """See `Backend.next_token`."""
        if head.learns:
            return super().next_token(hidden, tokens, head, wants)
        return logprobs_and_entropy(hidden, tokens, head, self.product, wants)

    @contextmanager
    def prepare(self, model: Any, adapter: str | None, slots: int, tokens: int) -> Iterator[None]:
        """See `Backend.prepare`."""
        if tokens < MIN_TOKENS or not self.prepares(model, adapter, slots):
            yield
            return
        memory.trim()  # the last step left freed pieces that no copy fits
        copies: dict[int, PreparedWeight] = {}
        try:
            copies = self.copies(model, adapter, slots)
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):  # sampling works without copies
                raise
        try:
            with setting(PREPARED, copies):
                yield
        finally:
            copies.clear()  # trimming would find them in use otherwise
            memory.trim()  # many small weights leave gaps that the next step's tensors do not fit

    def prepares(self, model: Any, adapter: str | None, slots: int) -> bool:
        """Whether copies make sampling faster, and have room."""
        raise NotImplementedError

    @torch.no_grad()
    def copies(self, model: Any, adapter: str | None, slots: int) -> dict[int, PreparedWeight]:
        """Copies of the head and of all layers with adapters; see `PREPARED`."""
        head = model.get_output_embeddings()
        found = {id(head.weight): self.copy(head.weight, getattr(head, "bias", None), slots)}
        for layer in plain_layers(model):
            linear = layer.base_layer
            if adapter is None:
                found[id(linear.weight)] = self.copy(linear.weight, linear.bias, slots)
                continue
            factors = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            weight = merged(linear.weight, LowRank(*factors, layer.scaling[adapter]))
            found[id(factors[1])] = self.copy(weight, linear.bias, slots, factors)
        return found


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
