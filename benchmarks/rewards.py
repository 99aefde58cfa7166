"""A reward function in TRL's signature, given to both sides."""

from __future__ import annotations

from typing import Any


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of a response's tokens whose number is even: it costs nothing and differs between responses."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
