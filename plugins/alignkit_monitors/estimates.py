"""How much a number has changed between two looks, whether gold fell, and what a score pays for; by prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean as mean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alignkit.evaluation.statistics import shown

Floats = NDArray[np.float64]
LEAST = 8  # prompts
LEVEL = 0.05  # chance of a false stop over all pairs of iterations
FEWEST = 10  # prompts in which a feature varies
_WIDEST = 1 << 32  # features


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


class Effects:
    """What a score pays for: its slope on features of answers to the same prompt, over all iterations so far.

    A prompt's difficulty does not count, because answers are only compared with others to the same prompt in the same
    iteration. The standard error is clustered by prompt (Liang and Zeger 1986) over all iterations, as answers to a
    prompt resemble each other, and what a score pays for at a prompt, it pays for again in the next iteration.

    Kept are sums by prompt, from which the slopes follow; they grow by one look at a time. scores: their names.
    """

    def __init__(self, scores: Sequence[str]):
        self.scores = tuple(scores)
        self._columns: dict[str, int] = {}  # of the features
        self._numbers: dict[Hashable, int] = {}  # of the prompts
        # Only where a feature varies within a prompt: the pair's key, then the sums of x * x and of x * each score.
        self._keys, self._sums = np.zeros(0, dtype=np.int64), np.zeros((1 + len(scores), 0))
        self._new: list[tuple[Any, Floats]] = []  # of later looks, which may repeat pairs

    def add(
        self, names: Sequence[str], features: Floats, scores: Mapping[str, Floats], groups: Sequence[Hashable]
    ) -> None:
        """Add answers. features: [answers, names]. scores: each [answers].

        groups: each answer's prompt. The answers to a prompt stand together; in another look it is the same prompt.
        """
        numbers = np.array([self._numbers.setdefault(group, len(self._numbers)) for group in groups], dtype=np.int64)
        starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
        x = centered(features, starts)
        sums = [np.add.reduceat(x * x, starts, axis=0)]  # [prompts, names] each
        for name in self.scores:
            sums.append(np.add.reduceat(x * centered(scores[name][:, None], starts), starts, axis=0))
        prompts, columns = np.nonzero(sums[0] > 0)
        keys = numbers[starts][prompts] * _WIDEST + self._places(names)[columns]
        self._new.append((keys, np.stack(sums)[:, prompts, columns]))
        if sum(len(keys) for keys, _ in self._new) > len(self._keys):
            self._merge()

    def _merge(self) -> None:
        """Put the sums of equal pairs together."""
        keys, sums = zip((self._keys, self._sums), *self._new, strict=True)
        self._keys, places = np.unique(np.concatenate(keys), return_inverse=True)
        rows = [np.bincount(places, row, len(self._keys)) for row in np.concatenate(sums, axis=1)]
        self._sums, self._new = np.stack(rows), []

    def _places(self, names: Sequence[str]) -> Any:
        return np.array([self._columns.setdefault(name, len(self._columns)) for name in names], dtype=np.int64)

    def slopes(self, score: str, names: Sequence[str], level: float) -> tuple[Floats, Floats, Floats]:
        """The slope of a score on each feature, and its interval at 1 - level; NaN where too few prompts vary in it."""
        places = self._places(names)
        self._merge()
        columns, count = self._keys % _WIDEST, len(self._columns)
        xx, xy = self._sums[0], self._sums[1 + self.scores.index(score)]  # [pairs]
        prompts = np.bincount(columns, minlength=count)
        total = np.where(prompts >= FEWEST, np.bincount(columns, xx, count), np.nan)
        slope = np.bincount(columns, xy, count) / total
        squares = np.bincount(columns, (xy - slope[columns] * xx) ** 2, count)
        error = np.sqrt(squares * prompts / np.maximum(prompts - 1, 1)) / total
        half = stats.t.ppf(1 - level / 2, np.maximum(prompts - 1, 1)) * error
        return slope[places], (slope - half)[places], (slope + half)[places]


def centered(values: Floats, starts: Any) -> Floats:
    """Values minus the mean of their prompt: [answers, columns]."""
    counts = np.diff(np.append(starts, len(values)))
    means = np.add.reduceat(values, starts, axis=0) / counts[:, None]
    centered: Floats = values - np.repeat(means, counts, axis=0)
    return np.where(np.abs(centered) < 1e-12, 0.0, centered)
