"""Packed weights for sampling a few rows in fp32 on a CPU, with a role's adapter merged in.

A product of a few rows could be as fast as reading the weight. But the libraries reorder the weight in every call, and
the calls of the adapter's two thin products cost as much again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import memory_ran_out
from alignkit.kernels import capabilities, matmul, memory
from alignkit.kernels.matmul import PackedWeight

MAX_ROWS = 96  # with more rows, plain products are as fast
MIN_TOKENS = 16  # with fewer tokens per row, packing takes longer than it saves
MEMORY_SHARE = 1 / 16  # share of all memory that the packed weights may take


@contextmanager
def prepacked_weights(model: Any, adapter: str | None, rows: int, tokens: int) -> Iterator[None]:
    """Pack the weights for sampling `tokens` tokens in each of up to `rows` rows, if that is faster.

    model: a transformers model, whose adapters may be peft's. adapter: the one to merge; None: the base. Its parameters
    must not change inside.
    """
    if not (0 < rows <= MAX_ROWS and tokens >= MIN_TOKENS and _packable(model)):
        yield
        return
    memory.trim()  # the last step left freed pieces that no packed weight fits
    try:
        with matmul.using(_pack_within_memory(model, adapter, rows)):
            yield
    finally:
        memory.trim()  # many small weights leave gaps that the next step's tensors do not fit


def _packable(model: Any) -> bool:
    weight = model.get_output_embeddings().weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not capabilities.can_pack_weights():
        return False
    size = sum(parameter.nbytes for parameter in model.parameters())
    return bool(size <= MEMORY_SHARE * memory.total(weight.device))


def _pack_within_memory(model: Any, adapter: str | None, rows: int) -> dict[int, PackedWeight]:
    """`_pack`, or no packed weights if memory runs out: sampling works without them."""
    try:
        return _pack(model, adapter, rows)
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
    return {}


@torch.no_grad()
def _pack(model: Any, adapter: str | None, rows: int) -> dict[int, PackedWeight]:
    """Packed weights by the `id` of the parameter they replace: the adapter's upper factor, or the plain weight."""
    from peft.tuners.lora import LoraLayer

    head = model.get_output_embeddings()
    packed = {id(head.weight): PackedWeight(head.weight, getattr(head, "bias", None), rows)}
    for layer in model.modules():
        # Quantized layers are subclasses of `nn.Linear`, and their weights are no plain matrices.
        if isinstance(layer, LoraLayer) and type(layer.base_layer) is nn.Linear:
            key, weight = _merged(layer, adapter)
            packed[id(key)] = PackedWeight(weight, layer.base_layer.bias, rows)
    return packed


def _merged(layer: Any, adapter: str | None) -> tuple[Tensor, Tensor]:
    """The parameter that a packed weight replaces, and the layer's weight with the adapter merged in."""
    weight = layer.base_layer.weight
    if adapter is None:
        return weight, weight
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return up, torch.addmm(weight, up, down, alpha=layer.scaling[adapter])
