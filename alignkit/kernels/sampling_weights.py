"""Weights for sampling a few rows in fp32 on a CPU: a role's adapter merged into a copy in the kernels' own order.

A product of few rows could take as long as reading the weights. But libraries bring these into an order of their own
first, at every call, and the two thin products of an adapter cost as much again in calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignkit.kernels import matmul, memory
from alignkit.kernels.matmul import PackedWeight

if TYPE_CHECKING:
    from alignkit.models.shared_model import Role, SharedModel

MOST_ROWS = 96  # with more, plain products are as fast
LEAST_TOKENS = 16  # with fewer, making the copy takes longer than it saves
SHARE = 1 / 16  # of all memory, that the copy may take


@contextmanager
def merged(policy: SharedModel, name: str, rows: int, tokens: int) -> Iterator[None]:
    """Inside, products of up to `rows` rows without gradients by a role's layers use a copy of their weights, if that
    is of use to sample so many tokens a row. The role must not learn meanwhile.
    """
    useful = 0 < rows <= MOST_ROWS and tokens >= LEAST_TOKENS
    if not (useful and _possible(policy)):
        yield
        return
    memory.trim_freed_memory()  # what is kept from the last step, and fits no copy, would stay beside them
    try:
        with matmul.using(_copies_if_they_fit(policy.roles[name], rows)):
            yield
    finally:
        memory.trim_freed_memory()  # what comes next would not fit into the gaps that many small copies leave


def _possible(policy: SharedModel) -> bool:
    if policy.device.type != "cpu" or policy.dtype != torch.float32 or not matmul.can_order():
        return False
    return sum(parameter.nbytes for parameter in policy.model.parameters()) <= SHARE * memory.total(policy.device)


def _copies_if_they_fit(role: Role, rows: int) -> dict[int, PackedWeight]:
    """An empty mapping where memory runs out: sampling goes on without."""
    try:
        return _make_copies(role, rows)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
    return {}


@torch.no_grad()
def _make_copies(role: Role, rows: int) -> dict[int, PackedWeight]:
    """By the parameter that names a product: an adapter's upper factor, or a weight without an adapter."""
    from peft.tuners.lora import LoraLayer

    head = role.model.get_output_embeddings()
    found = {id(head.weight): PackedWeight(head.weight, getattr(head, "bias", None), rows)}
    for layer in role.model.modules():
        if isinstance(layer, LoraLayer) and type(layer.base_layer) is nn.Linear:
            key, weight = _weight(layer, role.adapter)
            found[id(key)] = PackedWeight(weight, layer.base_layer.bias, rows)
    return found


def _weight(layer: Any, adapter: str | None) -> tuple[Tensor, Tensor]:
    """The parameter that names the layer's product, and the weight with the adapter merged into it."""
    weight = layer.base_layer.weight
    if adapter is None:
        return weight, weight
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return up, torch.addmm(weight, up, down, alpha=layer.scaling[adapter])
