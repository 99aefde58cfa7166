"""The reward `regex`: whether a pattern occurs in an answer."""

from __future__ import annotations

from typing import Any

import alignkit
from alignkit import Field
from alignkit_plugins.rewards.text import SECONDS, OfAnswers, Pattern, Scaled
from alignkit_plugins.text.spoken import TAGS

# What a pattern that is about thoughts has in it
_NAMED = rf"(?:{'|'.join(TAGS)})>|THINK|◁|_of_thought|channel\\"


class Regex(Scaled, OfAnswers):
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

    calls = True

    def __init__(self, options: Any):
        super().__init__(options)
        import regex

        self.pattern = regex.compile(options.pattern)
        self.thoughts = regex.search(_NAMED, options.pattern) is not None

    def grade(self, answer: str, known: None) -> float | None:
        try:
            found = self.pattern.search(answer, timeout=SECONDS) is not None
            return self.options.scale * found
        except TimeoutError:
            return None
