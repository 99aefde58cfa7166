"""The answers that a reward reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alignkit import Group
from alignkit_plugins.formats.spoken import answer_of, last_turn


def scored(
    groups: Sequence[Group], score: Callable[[Group, str], float | None], *, thoughts: bool = False
) -> Mapping[str, list[float | None]]:
    """What `score` makes of each answer, as `Reward.score` returns it. thoughts: with those before
    it.
    """
    read = last_turn if thoughts else answer_of
    return {"": [score(group, read(response)) for group in groups for response in group.responses]}
