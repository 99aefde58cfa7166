"""The memory of passes through a base model: the tokens of a pack, layers that are computed
again, and what passes need of other processes.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.errors import memory_ran_out
from alignkit.kernels.memory import release_cached, total
from alignkit.models.loading import backbone, largest

T = TypeVar("T")

MOST_TOKENS = 16384
LEAST_TOKENS, LEAST_ON_GPU = 256, 512  # before any halving
CPU_ACTIVATIONS = 2.0**30  # bytes per pack on a CPU; longer ones are hardly faster
SHARE = 1 / 4  # share of all memory for the activations of a pack


@dataclass
class MemoryBudget:
    """Tokens per pack with gradients, so that a step's memory does not depend on the batch
    size.

    bytes_per_token: activations that a forward pass stores for backward. halvings: how often memory
    ran out and the budget was halved. sampling_halvings: how often that happened while sampling,
    which then takes fewer slots at a time. fixed: whether work that ran out of memory cannot be
    repeated, because other processes wait in the middle of it.

    Packing changes the last bits of the gradients, so checkpoints store the budget.
    """

    device: torch.device
    bytes_per_token: int
    halvings: int = 0
    sampling_halvings: int = 0
    fixed: bool = False

    @cached_property
    def activation_bytes(self) -> float:
        """Bytes that the activations of a pack may take: a power of two, up to a quarter of
        all memory.

        Depends on total memory, not on free memory, so that a machine always packs a recipe the
        same way. On a CPU at most CPU_ACTIVATIONS. A checkpoint may bring the bytes of the machine
        that wrote it.
        """
        share = total(self.device) * SHARE
        # Machines that differ by a little memory pack alike, and so get the same bits.
        rounded = 2.0 ** math.floor(math.log2(share)) if share < math.inf else share
        return rounded if self.device.type == "cuda" else min(CPU_ACTIVATIONS, rounded)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens in a pack."""
        least = LEAST_TOKENS if self.device.type == "cpu" else LEAST_ON_GPU
        tokens = int(min(MOST_TOKENS, max(least, self.activation_bytes // self.bytes_per_token)))
        # The floor ends the halving: `halve` then reports that nothing shrank.
        return max(least // 8, tokens >> self.halvings)

    def halve(self) -> bool:
        """Halve the token budget. Returns whether it shrank."""
        if self.fixed:
            return False
        before = self.tokens
        self.halvings += 1
        return self.tokens < before

    def must_recompute(self, tokens: int) -> bool:
        """Whether a pack is too long to store its activations.

        A single group cannot be cut and may exceed the budget. The limit is a quarter of all
        memory, and halves with the budget.
        """
        return tokens * self.bytes_per_token > total(self.device) * SHARE / 2**self.halvings

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "halvings": self.halvings,
            "sampling_halvings": self.sampling_halvings,
            "activation_bytes": self.activation_bytes,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with a checkpoint's budget, or with this process's if that has been halved more
        often.
        """
        self.halvings = max(self.halvings, state["halvings"])
        self.sampling_halvings = max(self.sampling_halvings, state["sampling_halvings"])
        self.activation_bytes = state["activation_bytes"]


def activation_bytes_per_token(config: Any, dtype: torch.dtype, *, frozen: bool) -> int:
    """Estimate, from a language model's configuration, what a forward pass stores for backward.

    frozen: whether the layers are frozen in half precision, and store half as many numbers: none
    for the gradients of their weights.
    """
    hidden = int(config.hidden_size)
    inner = largest(config, "intermediate_size") or 4 * hidden
    width = 16 * hidden + 4 * inner if frozen else 24 * hidden + 8 * inner
    return int(config.num_hidden_layers * width * (4 if dtype == torch.float32 else 2))


def within_memory(
    budget: MemoryBudget, work: Callable[[], T], halve: Callable[[], bool] | None = None
) -> T:
    """Return `work()`. When memory runs out, halve the token budget and repeat until it cannot
    shrink.

    halve: of work that does something else about it; returns whether it can be repeated.
    """
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error) or not (halve or budget.halve)():
                raise
        # Outside the handler, because the traceback of a handled error keeps the activations alive.
        gc.collect()
        release_cached(budget.device)


# Activation checkpointing: a layer stores only its input, and is computed again during backward.
# Roles share one model, so by the time of backward another role may be active, and attention may
# follow the layout of another pack. The second computation restores both; otherwise gradients
# would be wrong without an error.

Restore = Callable[[], AbstractContextManager[Any]]
# Brings back a pass's role and layout in backward; None: layers are not recomputed.
RECOMPUTING: ContextVar[Restore | None] = ContextVar("alignkit_restore", default=None)


def make_recomputable(model: nn.Module) -> bool:
    """Let `RECOMPUTING` act on the model's layers. Returns whether it has layers that support
    this.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return bool(layers)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    layer_forward, restore = type(self).forward, RECOMPUTING.get()
    if restore is None:
        return layer_forward(self, *args, **kwargs)

    def run(*inputs: Any) -> Any:
        with restore():
            return layer_forward(self, *inputs, **kwargs)

    # Layers draw no random numbers, because dropout is always off.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


# Passes


class Passes:
    """All weights are in this process, so a pass needs nobody else.

    A subclass overrides all methods, for processes that hold a part of the weights each.
    """

    @property
    def holds_part(self) -> bool:
        """Whether this process holds only a part of the weights."""
        return False

    def learns(self, role: str) -> None:
        """A role's network is about to learn: bring its parameters into the form that an optimizer
        gets.
        """

    def forward(self, role: str, run: Callable[[], Tensor]) -> Tensor:
        """The hidden states of a role, which `run` computes in one pass."""
        return run()

    def states(self, network: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        """The last hidden states [1, tokens, hidden] of a role's network, inside of `forward`."""
        return last_states(network, tokens, positions)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss of the passes since the last call."""
        loss.backward()

    def gather(self, role: str) -> None:
        """Bring all weights of a role here for code that calls layers itself, until results are
        exchanged.
        """

    def copied(self, role: str) -> Any:
        """A role's own network to be written, with all weights; None where nothing is written."""
        return None


def last_states(network: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states [sequences, tokens, hidden] of tokens at positions, both [sequences, tokens]."""
    states: Tensor = backbone(network)(
        input_ids=tokens, position_ids=positions, use_cache=False
    ).last_hidden_state
    return states
