"""A frozen linear layer and its LoRA adapter in one step: y = W x + s B A x (Hu et al. 2021,
equation 3).

The two terms are added in place, forward and backward. Separate operators would read and write the
layer's whole output, and in the backward pass its input's gradient, a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignkit.errors import memory_ran_out
from alignkit.kernels import capabilities, memory
from alignkit.kernels.layout import setting
from alignkit.kernels.matmul import PACKED, PackedWeight, linear, matmul, packed_weight_for


def adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """x W^T + b + scale (x down^T) up^T in the dtype of x, with gradients for x, down and up.

    x [..., inputs]; frozen weight [outputs, inputs] and bias [outputs]; down [rank, inputs], up
    [outputs, rank].
    """
    if (packed := packed_weight_for(up, x, bias)) is not None:
        return packed(x)
    if not torch.is_grad_enabled():  # the few rows of sampling gain nothing from one step
        return linear(x, weight, bias).add_(low_rank(x, down, up, scale))
    out: Tensor = _Adapted.apply(x, weight, bias, down, up, scale)
    # Reshaped outside the function: some models clamp the output in place, which autograd forbids
    # on its views.
    return out.view(*x.shape[:-1], len(weight))


def low_rank(x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The adapter's own term, scale (x down^T) up^T, [..., outputs] in the dtype of x."""
    return linear(linear(x, down.to(x.dtype)), _scaled(up, scale, x.dtype))


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
            x_gradient = (
                matmul(gradient, weight).addmm_(low_gradient, down.to(x.dtype)).view(x.shape)
            )
        if ctx.needs_input_grad[3]:
            down_gradient = matmul(low_gradient.t(), x.reshape(-1, weight.shape[1])).to(down.dtype)
        if ctx.needs_input_grad[4]:
            # Not gradient^T low: transposing the larger factor takes twice as long.
            up_gradient = matmul(low.t(), gradient).t().to(up.dtype).mul_(ctx.scale)
        return x_gradient, None, None, down_gradient, up_gradient, None


def _scaled(up: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    # The factor goes into the small matrix, before rounding, and not into [rows, outputs].
    return (up * scale).to(dtype)


# Copies of the weights for sampling, with a role's adapter merged in. On a CPU in fp32, a product
# of a few rows could be as fast as reading the weight. But the libraries reorder the weight in
# every call, and the calls of the adapter's two thin products cost as much again: the copies are
# packed. On a GPU they are merged only (alignkit_plugins/gpu).

MAX_ROWS = 96  # with more rows, plain products are as fast
MIN_TOKENS = 16  # with fewer tokens per row, packing takes longer than it saves
MEMORY_SHARE = 1 / 16  # share of all memory that the packed weights may take


@contextmanager
def prepacked_weights(model: Any, adapter: str | None, rows: int, tokens: int) -> Iterator[None]:
    """Pack or merge the weights for sampling `tokens` tokens in each of up to `rows` rows, if that
    is faster.

    model: a transformers model, whose adapters may be peft's. adapter: the one to merge; None: the
    base. Its parameters must not change inside.
    """
    gpu = capabilities.on_gpu(model.get_output_embeddings().weight.device, "sampling")
    if tokens < MIN_TOKENS or (gpu is None and not (0 < rows <= MAX_ROWS and _packable(model))):
        yield
        return
    memory.trim()  # the last step left freed pieces that no packed weight fits
    packed: dict[int, PackedWeight] = {}
    try:
        packed = _pack(model, adapter, rows) if gpu is None else gpu.merged_weights(model, adapter)
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):  # sampling works without copies
            raise
    try:
        with setting(PACKED, packed):
            yield
    finally:
        packed.clear()  # trimming would find them in use otherwise
        memory.trim()  # many small weights leave gaps that the next step's tensors do not fit


def _packable(model: Any) -> bool:
    weight = model.get_output_embeddings().weight
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or not capabilities.can_pack_weights()
    ):
        return False
    size = sum(parameter.nbytes for parameter in model.parameters())
    return bool(size <= MEMORY_SHARE * memory.total(weight.device))


def lora_layers(model: Any) -> list[Any]:
    """The layers with adapters."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


def plain_layers(model: Any) -> list[Any]:
    """The linear layers with adapters. Quantized ones are subclasses, and their weights are no
    plain matrices.
    """
    return [layer for layer in lora_layers(model) if type(layer.base_layer) is nn.Linear]


@torch.no_grad()
def _pack(model: Any, adapter: str | None, rows: int) -> dict[int, PackedWeight]:
    """Packed weights by the `id` of the parameter they replace: the adapter's upper factor, or the
    plain weight.
    """
    head = model.get_output_embeddings()
    packed = {id(head.weight): PackedWeight(head.weight, getattr(head, "bias", None), rows)}
    for layer in plain_layers(model):
        key = weight = layer.base_layer.weight
        if adapter is not None:
            down, key = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            weight = torch.addmm(weight, key, down, alpha=layer.scaling[adapter])
        packed[id(key)] = PackedWeight(weight, layer.base_layer.bias, rows)
    return packed
