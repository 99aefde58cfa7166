"""How much a number has changed between two looks, and whether gold fell, by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean as mean
from typing import NamedTuple

import numpy as np
from scipy import stats

from alignkit.evaluation.statistics import shown

LEAST = 8  # prompts
LEVEL = 0.05  # chance of a false stop over all pairs of iterations


class Change(NamedTuple):
    """A difference with its interval. before, after: the means that it compares. prompts: how many it rests on."""

    mean: float
    low: float
    high: float
    before: float
    after: float
    prompts: int

    def __str__(self) -> str:
        return shown(self._asdict(), sign=True)


def change(before: Mapping[str, float], after: Mapping[str, float], level: float = 0.05) -> Change | None:
    """`after - before` with its interval at 1 - level; None with too few prompts.

    Prompts that both have are compared with themselves, which is far more precise, as prompts differ more than
    policies do. If there are too few of them, the two means are compared as independent (Welch's t interval).
    """
    common = [prompt for prompt in before if prompt in after]
    if len(common) >= LEAST:
        old, new = np.array([before[p] for p in common]), np.array([after[p] for p in common])
        differences = new - old
        error, freedom = float(stats.sem(differences)), float(len(common) - 1)
    else:
        old, new = np.array(list(before.values())), np.array(list(after.values()))
        if min(len(old), len(new)) < LEAST:
            return None
        parts = (old.var(ddof=1) / len(old), new.var(ddof=1) / len(new))
        error = math.sqrt(sum(parts))
        spread = parts[0] ** 2 / (len(old) - 1) + parts[1] ** 2 / (len(new) - 1)
        freedom = sum(parts) ** 2 / spread if spread else float(len(old) + len(new) - 2)
    middle = float(new.mean() - old.mean())
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error if error else 0.0
    return Change(middle, middle - half, middle + half, float(old.mean()), float(new.mean()), min(len(old), len(new)))


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
