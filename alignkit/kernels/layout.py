"""How the tokens of a forward pass see each other, and what it reads without being given it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionArgs:
    """A layer's attention settings: scale of the scores, sliding window in tokens, cap of the
    scores.
    """

    scaling: float | None
    window: int | None
    softcap: float | None


class Layout(Protocol):
    """Computes attention for the tokens that it describes."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """q [1 or slots, heads, tokens, size], k and v with at most as many heads -> [1 or slots,
        heads, tokens, size of v].
        """
        ...


@dataclass(frozen=True)
class GroupSpan:
    """A group's place in a pack: its first token, and the lengths of its prompt and responses in
    tokens.
    """

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.responses)

    def longer_than(self, window: int | None) -> bool:
        """Whether a sliding window hides tokens from the end of the prompt with its longest
        response.
        """
        return window is not None and window < self.prompt + max(self.responses, default=0)

    def positions(self) -> Tensor:
        """Each token's position in its own sequence, [length]: every response continues the
        prompt.
        """
        parts = [torch.arange(self.prompt)]
        parts += [torch.arange(self.prompt, self.prompt + length) for length in self.responses]
        return torch.cat(parts)


@contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Give a variable this value inside, and bring back the one before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
