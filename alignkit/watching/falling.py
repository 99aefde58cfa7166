"""Whether gold has fallen from its best iteration: compared at the same prompts, if it was measured there."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean as mean

from alignkit.watching.change import Change, change

LEVEL = 0.05  # chance of a false stop over all pairs of iterations


class Gold:
    """Gold by prompt in each iteration. looks: how many there will be, at most. best: the iteration with the most."""

    def __init__(self, looks: int):
        self._level = LEVEL / max(1.0, looks * (looks - 1) / 2)
        self.best = 0
        self._best: Mapping[str, float] = {}
        self._last: Mapping[str, float] = {}

    def add(self, iteration: int, by_prompt: Mapping[str, float]) -> None:
        """Add an iteration. One in which no answer has a score says nothing."""
        if not by_prompt:
            return
        self._last = by_prompt
        if not self.best or mean(list(by_prompt.values())) > mean(list(self._best.values())):
            self.best, self._best = iteration, by_prompt

    def change(self) -> Change | None:
        """From the best iteration to the last, with an interval that holds over all pairs of iterations.

        The best of several is partly lucky, so that a plain interval would find a fall too often.
        """
        return change(self._best, self._last, self._level)

    def fell(self) -> bool:
        """Whether gold has fallen by more than the interval."""
        moved = self.change()
        return moved is not None and moved.high < 0
