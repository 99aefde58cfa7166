"""Statistics of measured means and shares, with intervals at 95%; plain numbers in, plain dictionaries out.

The unit of all of them is one independent draw, in alignkit a prompt: samples of one prompt are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """`n` values' mean and its interval; what is None cannot be told from so few values."""

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
    """A difference that is left at equal length; see `at_equal_length`."""

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
    """Mean of independent values with its t interval (Student 1908, "The probable error of a mean")."""
    from scipy import stats

    n = len(values)
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    if min(values) == max(values):  # scipy gives NaN where nothing varies
        bound = values[0] if n > 1 else None
        return {"mean": values[0], "low": bound, "high": bound, "n": n}
    middle = mean(values)
    low, high = map(float, stats.t.interval(CONFIDENCE, n - 1, loc=middle, scale=stats.sem(values)))
    return {"mean": middle, "low": low, "high": high, "n": n}


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean of `ours - theirs`, value by value, with the interval of the paired t test.

    Narrower than that of two separate means where both were measured on the same prompts, which differ more than
    policies do.
    """
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])


def at_equal_length(differences: Sequence[float], longer: Sequence[float]) -> EqualLength | None:
    """The difference that is left where answers are equally long: the intercept of the least-squares line of paired
    differences on those in length (tokens), with its t interval. `per_token`: the line's slope.

    Length is what fools rewards most often (Singhal et al. 2023, arXiv:2310.03716); the same correction by
    regression as in length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475), there a logistic one.

    None when length does not vary, or too few prompts for a line with an interval. `extrapolated`: all answers are
    longer, or all are shorter, so that equal length lies outside the data.
    """
    from scipy import stats

    n = len(differences)
    if n < 3 or min(longer) == max(longer):
        return None
    slope, intercept, error = 0.0, differences[0], 0.0
    if min(differences) < max(differences):  # scipy gives NaN where nothing varies
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
    """A proportion with its interval by Wilson 1927 ("Probable inference, the law of succession, and statistical
    inference"), which holds for few trials and for shares near 0 and 1; None without a trial.

    A tie may be half a hit: it varies less than a trial of hit or miss, so the interval is then too wide, never too
    narrow. (scipy has this interval for whole hits only.)
    """
    from scipy import stats

    if n == 0:
        return None
    p, z = hits / n, float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    shrink = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low = 0.0 if hits == 0 else middle - half  # which rounding misses by a hair
    high = 1.0 if hits == n else middle + half
    return {"mean": p, "low": low, "high": high, "n": n}
