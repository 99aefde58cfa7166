"""The answers that a reward reads, and what the columns of their prompts say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alignkit import DataError, Group, Response
from alignkit.data.group import preview
from alignkit.data.spoken import last_turn


def scored(groups: Sequence[Group], score: Callable[[Group, str], float | None]) -> Mapping[str, list[float | None]]:
    """What `score` makes of each answer, as `Reward.score` returns it."""
    return {"": [score(group, last_turn(response)) for group, response in _rows(groups)]}


def column_of(reward: str, group: Group, column: str) -> Any:
    """What the prompt's column holds. Raises DataError if the prompt lacks it."""
    value = group.meta.get(column)
    if value is None:
        names = ", ".join(group.meta) or "none"
        raise DataError(f"{reward}: the prompt {preview(group)} has no column '{column}' (its columns: {names})")
    return value


def _rows(groups: Sequence[Group]) -> Iterator[tuple[Group, Response]]:
    return ((group, response) for group in groups for response in group.responses)
