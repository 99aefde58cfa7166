"""The answers that a reward reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alignkit import Group
from alignkit.data.spoken import last_turn


def scored(groups: Sequence[Group], score: Callable[[Group, str], float | None]) -> Mapping[str, list[float | None]]:
    """What `score` makes of each answer, as `Reward.score` returns it."""
    return {"": [score(group, last_turn(response)) for group in groups for response in group.responses]}
