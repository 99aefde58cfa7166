"""How rewards read answers, and their patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from alignkit import Group, Reward
from alignkit_plugins.text.spoken import answer_of, last_turn

# The package `regex` can be interrupted: a policy may write what keeps a pattern busy for years.
SECONDS = 2.0


class OfAnswers(Reward):
    """A reward that grades one answer at a time, by what it knows of the prompt.

    thoughts: whether it reads those before the answer, too. calls: those of tools.
    """

    thoughts = False
    calls = False

    def known(self, group: Group) -> Any:
        """What `grade` has to know of a prompt. Raises DataError if the prompt lacks it."""

    def grade(self, answer: str, known: Any) -> float | None:
        """The score of an answer; None if it has none."""
        raise NotImplementedError

    def check_prompts(self, groups: Sequence[Group]) -> Sequence[str] | None:
        for group in groups:
            self.known(group)
        return None

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        read = last_turn if self.thoughts else answer_of
        scores: list[float | None] = []
        for group in groups:
            known, answers = self.known(group), group.responses
            scores += [self.grade(read(each, calls=self.calls), known) for each in answers]
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
