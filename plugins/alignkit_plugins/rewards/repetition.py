"""The reward `repetition`: how much of an answer repeats itself."""

from __future__ import annotations

from typing import Literal

import alignkit
from alignkit import Field
from alignkit_plugins.rewards.text import OfAnswers
from alignkit_plugins.text.text_metrics import repetition


class Repetition(OfAnswers):
    """0 if nothing is repeated, up to -1 if everything is.

    An answer shorter than n repeats nothing. Thoughts count.
    """

    class Options(alignkit.Options):
        n: int = Field(3, "length of a sequence that counts as repeated", ge=1, le=100)
        unit: Literal["words", "characters"] = Field(
            "words", "what a sequence consists of; `characters` for languages without spaces"
        )
        scale: float = Field(-1.0, "factor of the repeated share")

    options: Options
    thoughts = True
    calls = True

    def grade(self, answer: str, known: None) -> float:
        words = answer.casefold().split()
        units = words if self.options.unit == "words" else " ".join(words)
        return self.options.scale * repetition(units, self.options.n)
