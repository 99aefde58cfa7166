"""The reward `regex`: whether a pattern occurs in an answer."""

from __future__ import annotations

from collections.abc import Sequence

import alignkit
from alignkit import Field, Group
from alignkit_plugins.rewards.text import SECONDS, Pattern, Scaled, scored
from alignkit_plugins.text.spoken import TAGS

# What a pattern that is about thoughts has in it
_NAMED = rf"(?:{'|'.join(TAGS)})>|THINK|◁|_of_thought|channel\\"


class Regex(Scaled):
    """1 if the pattern occurs in the answer, else 0. A pattern with a tag of thoughts reads these,
    too.
    """

    class Options(alignkit.Options):
        pattern: Pattern = Field(
            min_length=1, description="regular expression, as the package `regex` reads it"
        )
        scale: float = Field(1.0, "the score of an answer that matches; -1 to train against it")

        @property
        def grader(self) -> str:
            """Another pattern is another reward."""
            return f"regex {self.pattern}"

    options: Options

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        import regex

        pattern = regex.compile(self.options.pattern)

        def score(group: Group, answer: str) -> float | None:
            try:
                found = pattern.search(answer, timeout=SECONDS) is not None
                return self.options.scale * found
            except TimeoutError:
                return None

        named = regex.search(_NAMED, self.options.pattern) is not None
        return scored(groups, score, thoughts=named, calls=True)
