"""Copies of the weights for sampling, with a role's adapter merged in.

On a CPU in fp32, a product of a few rows could be as fast as reading the weight. But the libraries reorder the weight
in every call, and the calls of the adapter's two thin products cost as much again: the copies are packed. On a GPU the
adapter's calls are half of all calls of a token. Merged in half precision, an adapter is rounded with its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import memory_ran_out
from alignkit.kernels import capabilities, matmul, memory, mode
from alignkit.kernels.matmul import MergedWeight, PackedWeight

Copy = PackedWeight | MergedWeight

MAX_ROWS = 96  # with more rows, plain products are as fast
MIN_TOKENS = 16  # with fewer tokens per row, packing takes longer than it saves
MEMORY_SHARE = 1 / 16  # share of all memory that the packed weights may take
FREE_SHARE = 1 / 4  # of a GPU's free memory that merged weights may take; keys and values take half


@contextmanager
def prepacked_weights(model: Any, adapter: str | None, rows: int, tokens: int) -> Iterator[None]:
    """Pack or merge the weights for sampling `tokens` tokens in each of up to `rows` rows, if that is faster.

    model: a transformers model, whose adapters may be peft's. adapter: the one to merge; None: the base. Its parameters
    must not change inside.
    """
    # Without an adapter there is nothing to merge, and a GPU packs nothing.
    if tokens >= MIN_TOKENS and adapter is not None and _mergeable(model):
        with matmul.using(_within_memory(lambda: _merge(model, adapter))):
            yield
        return
    if not (0 < rows <= MAX_ROWS and tokens >= MIN_TOKENS and _packable(model)):
        yield
        return
    memory.trim()  # the last step left freed pieces that no packed weight fits
    try:
        with matmul.using(_within_memory(lambda: _pack(model, adapter, rows))):
            yield
    finally:
        memory.trim()  # many small weights leave gaps that the next step's tensors do not fit


def _mergeable(model: Any) -> bool:
    """Whether this is a GPU with room for the copies. Quantized layers keep their adapters apart."""
    weight = model.get_output_embeddings().weight
    if weight.device.type != "cuda" or mode() == "torch":
        return False
    size = sum(layer.base_layer.weight.nbytes for layer in _plain_layers(model))
    return bool(size <= FREE_SHARE * memory.available(weight.device))


def _packable(model: Any) -> bool:
    weight = model.get_output_embeddings().weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not capabilities.can_pack_weights():
        return False
    size = sum(parameter.nbytes for parameter in model.parameters())
    return bool(size <= MEMORY_SHARE * memory.total(weight.device))


def _within_memory(copy: Callable[[], dict[int, Copy]]) -> dict[int, Copy]:
    """`copy()`, or no copies if memory runs out: sampling works without them."""
    try:
        return copy()
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
    return {}


@torch.no_grad()
def _merge(model: Any, adapter: str) -> dict[int, Copy]:
    """Merged weights by the `id` of the adapter's upper factor."""
    merged: dict[int, Copy] = {}
    for layer in _plain_layers(model):
        base, down, up = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        # The products of bf16 numbers would be rounded twice.
        weight = torch.addmm(base.weight.float(), up.float(), down.float(), alpha=layer.scaling[adapter])
        # By `up`, which `adapted` has at hand and which differs between adapters; the frozen weight is shared.
        merged[id(up)] = MergedWeight(weight.to(base.weight.dtype), base.bias)
    return merged


def _plain_layers(model: Any) -> list[Any]:
    """The linear layers with adapters. Quantized ones are subclasses, and their weights are no plain matrices."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return [layer for layer in layers if type(layer.base_layer) is nn.Linear]


@torch.no_grad()
def _pack(model: Any, adapter: str | None, rows: int) -> dict[int, Copy]:
    """Packed weights by the `id` of the parameter they replace: the adapter's upper factor, or the plain weight."""
    head = model.get_output_embeddings()
    packed: dict[int, Copy] = {id(head.weight): PackedWeight(head.weight, getattr(head, "bias", None), rows)}
    for layer in _plain_layers(model):
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
