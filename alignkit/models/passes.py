"""Passes through a base model's layers, and what they need of other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from alignkit.models.loading import backbone


class Passes:
    """All weights are in this process, so a pass needs nobody else.

    A subclass overrides all methods, for processes that hold a part of the weights each.
    """

    @property
    def spread(self) -> bool:
        """Whether this process holds only a part of the weights."""
        return False

    def learns(self, role: str) -> None:
        """A role's network is about to learn: bring its parameters into the form that an optimizer gets."""

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
        """Bring all weights of a role here for code that calls layers itself, until results are exchanged."""

    def copied(self, role: str) -> Any:
        """A role's own network to be written, with all weights; None where nothing is written."""
        return None


def last_states(network: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states [1, tokens, hidden] of tokens at positions, both [1, tokens]."""
    states: Tensor = backbone(network)(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    return states
