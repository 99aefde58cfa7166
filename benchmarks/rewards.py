"""A reward function with TRL's signature, used by both sides."""

from __future__ import annotations

from typing import Any


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even token ids in each response: cheap, and different for each response."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
