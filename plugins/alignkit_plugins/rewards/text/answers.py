"""The answers that a reward reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alignkit import Group, Response
from alignkit.data.spoken import last_turn


def scored(
    groups: Sequence[Group], score: Callable[[Group, str], float | None], read: Callable[[Response], str] = last_turn
) -> Mapping[str, list[float | None]]:
    """What `score` makes of each answer, as `Reward.score` returns it."""
    return {"": [score(group, read(response)) for group in groups for response in group.responses]}
