"""The reward `repetition`: how much of an answer repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import alignkit
from alignkit import Field, Group, Reward
from alignkit_plugins.rewards.text import scored
from alignkit_plugins.text.text_metrics import repetition


class Repetition(Reward):
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

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        return scored(groups, self._score, thoughts=True, calls=True)

    def _score(self, group: Group, answer: str) -> float:
        words = answer.casefold().split()
        units = words if self.options.unit == "words" else " ".join(words)
        return self.options.scale * repetition(units, self.options.n)
