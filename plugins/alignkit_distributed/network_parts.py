"""What every way to cut a network between processes has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class NetworkInParts(ABC):
    """A language model of which each process of a run holds a part. All of them call each method together.

    A layer is whole only while it computes. Embeddings, head and norms are one part; they stay whole after a pass,
    because the head reads them outside of it.
    """

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether this process holds all layers."""

    @abstractmethod
    def states(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The last hidden states [1, tokens, hidden] of tokens at positions, both [1, tokens]."""

    @abstractmethod
    def unshard(self) -> None:
        """Bring all parts here, until `reshard`."""

    @abstractmethod
    def reshard(self) -> None:
        """Free what belongs to other processes. Sends nothing."""


# Cuts a network on a device, but not its adapters.
Cut = Callable[[Any, Iterable[nn.Parameter], torch.device], NetworkInParts]


def layers_of(module: nn.Module) -> Iterator[Any]:
    """The outermost layers, in their order."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from layers_of(child)
