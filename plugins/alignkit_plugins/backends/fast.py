"""What CPUs and GPUs do faster than the reference in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import memory_ran_out
from alignkit.kernels import memory
from alignkit.kernels.backends import Backend, LowRank
from alignkit.kernels.layout import setting
from alignkit.kernels.lm_head import HeadSpec, NextToken, TokenWants
from alignkit_plugins.backends.adapted import adapted
from alignkit_plugins.backends.frozen_head import logprobs_and_entropy
from alignkit_plugins.backends.prepared import (
    PREPARED,
    PreparedWeight,
    merged,
    plain_layers,
    prepared_for,
)

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
