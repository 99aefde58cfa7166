"""How much an answer repeats itself: the share of its n-grams that occurred before (Welleck et al. 2019, seq-rep-n)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import alignkit
from alignkit import Field, Group, Reward
from alignkit.evaluation.text_metrics import repetition
from alignkit_plugins.rewards.text.answers import scored


class Repetition(Reward):
    """0 if nothing is repeated, up to -1 if everything is. An answer shorter than n repeats nothing."""

    class Options(alignkit.Options):
        n: int = Field(3, ge=1, le=100, description="length of a sequence that counts as repeated")
        unit: Literal["words", "characters"] = Field(
            "words", description="what a sequence consists of; `characters` for languages without spaces"
        )
        scale: float = Field(-1.0, description="factor of the repeated share")

    options: Options

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return scored(groups, lambda group, answer: self.options.scale * self._share(answer))

    def _share(self, answer: str) -> float:
        words = answer.casefold().split()
        units: Sequence[str] = words if self.options.unit == "words" else " ".join(words)
        return repetition(units, self.options.n)
