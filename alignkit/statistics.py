"""Means and proportions with 95% confidence intervals: plain numbers in, plain dictionaries out.

The unit is one independent draw. In alignkit that is a prompt: average the samples of a prompt first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """The mean of `n` values and its interval; None if there are too few values."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class Share(TypedDict):
    """A proportion of `n` trials with its interval."""

    mean: float
    low: float
    high: float
    n: int


class EqualLength(TypedDict):
    """A difference corrected for length; see `at_equal_length`."""

    mean: float
    low: float
    high: float
    n: int
    per_token: float
    extrapolated: bool


def mean(values: Sequence[float]) -> float:
    """The average of at least one value."""
    return math.fsum(values) / len(values)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its t interval (Student 1908, "The probable error of a mean")."""
    from scipy import stats

    n = len(values)
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    if min(values) == max(values):  # scipy returns NaN for constant values
        bound = values[0] if n > 1 else None
        return {"mean": values[0], "low": bound, "high": bound, "n": n}
    middle = mean(values)
    low, high = map(float, stats.t.interval(CONFIDENCE, n - 1, loc=middle, scale=stats.sem(values)))
    return {"mean": middle, "low": low, "high": high, "n": n}


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of `ours - theirs`, value by value, with the interval of the paired t test.

    Measured on the same prompts, this interval is narrower than those of the two means: prompts differ more than
    policies do. Raises `ValueError` if the numbers of values differ.
    """
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])


def at_equal_length(differences: Sequence[float], longer: Sequence[float]) -> EqualLength | None:
    """The difference expected between answers of equal length, with its t interval.

    differences: paired differences in reward. longer: paired differences in length, in tokens. The result is the
    intercept of the least-squares line of the former on the latter; `per_token` is its slope. `extrapolated` means
    that equal length is outside the data: all answers are longer, or all are shorter.

    Length is the most common reason for misleading rewards (Singhal et al. 2023, arXiv:2310.03716). Length-controlled
    AlpacaEval (Dubois et al. 2024, arXiv:2404.04475) makes the same correction with a logistic regression.

    Returns None if the length does not vary, or for fewer than three prompts.
    """
    from scipy import stats

    n = len(differences)
    if n < 3 or min(longer) == max(longer):
        return None
    slope, intercept, error = 0.0, differences[0], 0.0
    if min(differences) < max(differences):  # scipy returns NaN for constant values
        line = stats.linregress(longer, differences)
        slope, intercept, error = float(line.slope), float(line.intercept), float(line.intercept_stderr)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 2)) * error
    return {
        "mean": intercept,
        "low": intercept - half,
        "high": intercept + half,
        "n": n,
        "per_token": slope,
        "extrapolated": not min(longer) <= 0 <= max(longer),
    }


def share(hits: float, n: int) -> Share | None:
    """A proportion with its Wilson interval; None without a trial.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference". The interval is valid for few
    trials and for proportions near 0 and 1. A tie may count as half a hit: ties vary less than hits and misses, so the
    interval is then too wide, never too narrow. (scipy's version accepts integers only.)
    """
    from scipy import stats

    if n == 0:
        return None
    p, z = hits / n, float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    shrink = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low = 0.0 if hits == 0 else middle - half  # exact, unlike the formula
    high = 1.0 if hits == n else middle + half
    return {"mean": p, "low": low, "high": high, "n": n}
