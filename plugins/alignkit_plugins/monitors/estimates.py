"""How much a number has changed between two looks, and whether gold fell, by prompt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean as mean
from typing import NamedTuple

from scipy import stats

from alignkit.evaluation.statistics import shown

LEAST = 8  # prompts
LEVEL = 0.05  # chance of a false stop over all pairs of iterations


ByPrompt = Mapping[str, float]  # a prompt is the unit of all intervals


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each prompt that has a value."""
    return {prompt: mean(each) for prompt, each in values.items() if each}


class Change(NamedTuple):
    """A difference with its interval. before, after: the means that it compares. prompts: how many
    it rests on.
    """

    mean: float
    low: float
    high: float
    before: float
    after: float
    prompts: int

    def __str__(self) -> str:
        return shown(self._asdict(), sign=True)


def change(before: ByPrompt, after: ByPrompt, level: float = 0.05) -> Change | None:
    """`after - before` with its interval at 1 - level; None with too few prompts.

    Prompts that both have are compared with themselves, which is far more precise, as prompts
    differ more than policies do. If there are too few of them, the two means are compared as
    independent (Welch's t interval).
    """
    common = [prompt for prompt in before if prompt in after]
    if len(common) >= LEAST:
        old, new = [before[prompt] for prompt in common], [after[prompt] for prompt in common]
        test = partial(stats.ttest_rel, new, old)
    elif min(len(before), len(after)) >= LEAST:
        old, new = list(before.values()), list(after.values())
        test = partial(stats.ttest_ind, new, old, equal_var=False)
    else:
        return None
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of equal values
        low, high = test().confidence_interval(1 - level)
    return Change(
        mean(new) - mean(old),
        float(low),
        float(high),
        mean(old),
        mean(new),
        min(len(old), len(new)),
    )


class History:
    """Gold by prompt in each iteration. looks: how many there will be, at most. best: the iteration
    with the most.
    """

    def __init__(self, looks: int):
        self._level = LEVEL / max(1.0, looks * (looks - 1) / 2)
        self.best = 0
        self._best: ByPrompt = {}
        self._last: ByPrompt = {}

    def add(self, iteration: int, scores: Mapping[str, Sequence[float]]) -> None:
        """Add an iteration, with scores by prompt. One in which no answer has a score says
        nothing.
        """
        by_prompt = means(scores)
        if not by_prompt:
            return
        self._last = by_prompt
        if not self.best or mean(list(by_prompt.values())) > mean(list(self._best.values())):
            self.best, self._best = iteration, by_prompt

    def change(self) -> Change | None:
        """From the best iteration to the last, with an interval that holds over all pairs of
        iterations.

        The best of several is partly lucky, so that a plain interval would find a fall too often.
        """
        return change(self._best, self._last, self._level)

    def fell(self) -> bool:
        """Whether gold has fallen by more than the interval."""
        moved = self.change()
        return moved is not None and moved.high < 0
