"""How rewards read answers, and their patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from alignkit import Group, Reward
from alignkit_plugins.text.spoken import answer_of, last_turn

# The package `regex` can be interrupted: a policy may write what keeps a pattern busy for years.
SECONDS = 2.0


def scored(
    groups: Sequence[Group],
    score: Callable[[Group, str], float | None],
    *,
    thoughts: bool = False,
    calls: bool = False,
) -> Sequence[float | None]:
    """What `score` makes of each answer, as `Reward.score` returns it. thoughts: with those before
    it. calls: with those of tools.
    """
    read = last_turn if thoughts else answer_of
    scores: list[float | None] = []
    for group in groups:
        scores += [score(group, read(response, calls=calls)) for response in group.responses]
    return scores


class Scaled(Reward):
    """A reward whose scores are from 0 to its option `scale`."""

    def __init__(self, options: Any):
        super().__init__(options)
        self.bounds = min(0.0, options.scale), max(0.0, options.scale)


def _checked(pattern: str) -> str:
    """The pattern. Raises ValueError if it cannot be read."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]
