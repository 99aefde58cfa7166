"""Agreement between labelers, and how much of it exceeds chance.

A unit is a labeled item, such as a prompt with two responses. `units[u]` holds the ratings of unit u in any order;
None or NaN is a missing rating. Ratings are numbers, or any hashable values if only their equality matters.

The coefficients are 1 - D_o / D_e, where D_o is the observed and D_e the expected disagreement: 1 is perfect
agreement, 0 is chance, and negative values are worse than chance. They are None if chance could never disagree
(all ratings are equal) or if no unit has two ratings: such labels say nothing about the labelers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from alignkit import seeds
from alignkit.evaluation.statistics import CONFIDENCE, Estimate, rate

Rating = Hashable
Unit = Sequence[Rating]
Level = Literal["nominal", "ordinal", "interval"]
Array = NDArray[np.float64]
Values = Sequence[Any] | Array
Coefficient = Literal["agreement", "fleiss_kappa", "gwet_ac1", "gwet_ac2", "alpha_nominal", "alpha_ordinal"]
REPETITIONS = 2000  # of a bootstrap


def krippendorff_alpha(units: Sequence[Unit], level: Level = "nominal") -> float | None:
    """Agreement of any number of labelers, with missing ratings.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability". Units with fewer than two ratings are left out.

    level: the distance of two ratings. `nominal`: equal or not. `ordinal`: the number of ratings between them, squared.
    `interval`: their difference, squared. Raises `ValueError` for an unknown level, or for ratings that are not
    numbers unless the level is nominal.
    """
    if level not in _LEVELS:
        raise ValueError(f"level must be {', '.join(_LEVELS)}, not {level!r}")
    return _alpha_of(*_counted(units, None if level == "nominal" else level), _LEVELS[level])


# Intervals


def interval(
    units: Sequence[Unit],
    coefficient: Coefficient,
    *,
    seed: int = 0,
    categories: Sequence[Rating] = (),
    clusters: Sequence[Hashable] = (),
) -> Estimate:
    """A coefficient with its 95% interval: percentiles of 2,000 draws of units with all their ratings.

    agreement: how often two ratings of a unit are equal, including by chance; every pair of ratings counts once.
    InstructGPT's labelers agreed on 72.6% of comparisons (Ouyang et al. 2022, arXiv:2203.02155, section 3.4).
    fleiss_kappa: Fleiss 1971, "Measuring nominal scale agreement among many raters".
    gwet_ac1: steadier than kappa if one rating is rare (Gwet 2008, "Computing inter-rater reliability and its variance
    in the presence of high agreement"); Llama 2 reports it (Touvron et al. 2023, arXiv:2307.09288, appendix A.4.1).
    gwet_ac2: a disagreement weighs the square of the distance of two numbers. Missing ratings as in Gwet 2014,
    "Handbook of inter-rater reliability", chapter 5.
    alpha_nominal, alpha_ordinal: `krippendorff_alpha`.

    `alpha_ordinal` and `gwet_ac2` need numbers. seed: of the draws. categories: of Gwet's coefficients, ratings that
    were possible, in addition to those that occur. clusters: of each unit, a name; units with the same one depend on
    each other, and are drawn together. n: units with two ratings or more. A mean of None, or no interval, means that
    the coefficient is not defined, or not for nearly all draws. Efron 1979, "Bootstrap methods: another look at the
    jackknife".

    Raises `ValueError` for Fleiss' kappa of units with different numbers of ratings, if they have two or more.
    """
    gwet = coefficient in ("gwet_ac1", "gwet_ac2")
    numbers = coefficient if coefficient in ("alpha_ordinal", "gwet_ac2") else None
    values, counts = _counted(units, numbers, categories if gwet else ())
    several = counts.sum(1) >= 2
    used = counts.sum(1) >= 1 if gwet else several
    counts = counts[used]
    if coefficient == "fleiss_kappa":
        _check_sizes(counts)
    compute = _COEFFICIENTS[coefficient]
    rows: dict[Hashable, list[int]] = {}
    for row, place in enumerate(np.flatnonzero(used).tolist()):
        rows.setdefault(clusters[place] if clusters else row, []).append(row)
    together = [np.array(each) for each in rows.values()]

    def again(drawn: NDArray[np.int64]) -> float | None:
        if len(together) < len(counts):
            drawn = np.concatenate([together[place] for place in drawn])
        return compute(values, counts[drawn])

    found = bootstrap(compute(values, counts), len(together), again, seed=seed)
    return {**found, "n": int(several.sum())}


def bootstrap(
    found: float | None, n: int, again: Callable[[NDArray[np.int64]], float | None], *, seed: int = 0
) -> Estimate:
    """A statistic of n units with its bootstrap interval. again: the statistic of the units with these indices."""
    if found is None or n < 2:
        return {"mean": found, "low": None, "high": None, "n": n}
    draws = seeds.stream(seed, "agreement", n).integers(0, n, size=(REPETITIONS, n))
    spread = [value for drawn in draws if (value := again(drawn)) is not None]
    if len(spread) < 0.95 * REPETITIONS:
        return {"mean": found, "low": None, "high": None, "n": n}
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(spread, [tail, 1 - tail])
    return {"mean": found, "low": float(low), "high": float(high), "n": n}


class TwoRaters(TypedDict):
    """How two raters agree. same: the share of equal ratings. kappa, ac1: beyond chance, None if undefined."""

    same: Estimate
    kappa: Estimate
    ac1: Estimate


def two_raters(units: Sequence[Sequence[tuple[Rating, Rating]]], *, seed: int, stream: str = "") -> TwoRaters:
    """Agreement of two raters who choose between two ratings, with 95% intervals.

    kappa: Cohen 1960, "A coefficient of agreement for nominal scales". ac1: Gwet 2008, as in `interval`.

    units: for each independent draw, such as a prompt, the pairs of ratings. A pair with a missing rating is left out.
    Units are drawn again with all their pairs (percentiles of 2,000 repetitions; Efron 1979, "Bootstrap methods").
    Coefficients without any spread have no interval. seed, stream: name the random numbers.
    """
    known = [row for unit in units if (row := [pair for pair in unit if not any(map(_missing, pair))])]
    shares = [sum(one == other for one, other in row) / len(row) for row in known]
    same = rate(shares, max(map(len, known), default=1))
    values, tables = _tables(known)
    equal = _unequal(values, tables)
    n, possible = len(known), max(2, tables.shape[1])
    draws = np.ones((1, 0))  # how often each unit is drawn: [repetitions, n]
    if n:
        draws = seeds.stream(seed, "agreement", stream).multinomial(n, np.full(n, 1 / n), REPETITIONS).astype(float)

    def estimated(coefficient: Callable[[Array], Array]) -> Estimate:
        if not n or np.isnan(mean := float(coefficient(tables.sum(0)))):
            return {"mean": None, "low": None, "high": None, "n": n}
        spread = coefficient(np.tensordot(draws, tables, axes=1))
        spread = spread[~np.isnan(spread)]
        if np.ptp(spread) < 1e-12:
            return {"mean": mean, "low": None, "high": None, "n": n}
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(spread, [tail, 1 - tail])
        return {"mean": mean, "low": float(low), "high": float(high), "n": n}

    return {
        "same": same,
        "kappa": estimated(lambda table: _kappa(table, equal)),
        "ac1": estimated(lambda table: _ac1(table, possible)),
    }


def _tables(units: Sequence[Sequence[tuple[Rating, Rating]]]) -> tuple[list[Any], Array]:
    """The different ratings; and for each unit, how often each of the first met each of the second: [units, n, n]."""
    values = _values((rating for unit in units for pair in unit for rating in pair), None)
    index = {value: number for number, value in enumerate(values)}
    tables = np.zeros((len(units), len(values), len(values)))
    for table, unit in zip(tables, units, strict=True):
        for one, other in unit:
            table[index[one], index[other]] += 1
    return values, tables


def _kappa(table: Array, distance: Array) -> Array:
    """Cohen's kappa of tables [..., ratings, ratings]; NaN where undefined."""
    n = table.sum((-2, -1))
    expected = ((table.sum(-1) @ distance) * table.sum(-2)).sum(-1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (table * distance).sum((-2, -1)) / expected, np.nan)


def _ac1(table: Array, categories: int) -> Array:
    """Gwet's AC1 of tables [..., ratings, ratings]."""
    shares = table / table.sum((-2, -1), keepdims=True)
    either = (shares.sum(-1) + shares.sum(-2)) / 2
    chance = (either * (1 - either)).sum(-1) / (categories - 1)
    return (np.trace(shares, axis1=-2, axis2=-1) - chance) / (1 - chance)


# The coefficients of counts [units, values]


def _agreement_of(values: Values, counts: Array) -> float | None:
    pairs = _pairs(counts.sum(1)).sum()
    return float(_pairs(counts).sum() / pairs) if pairs else None


def _fleiss_of(values: Values, counts: Array) -> float | None:
    agreement = _agreement_of(values, counts)
    if agreement is None:
        return None
    shares = counts.sum(0) / counts.sum()
    return _beyond_chance(1 - agreement, shares @ _unequal(values, shares) @ shares)


def _alpha_of(values: Values, counts: Array, distance_of: _Distance) -> float | None:
    counts = counts[counts.sum(1) >= 2]
    totals, n = counts.sum(0), counts.sum()
    if n == 0:
        return None
    distance = distance_of(values, totals)
    # The coincidence of a rating with itself is not subtracted: it is on the diagonal, whose distance is 0.
    coincidences = (counts / (counts.sum(1, keepdims=True) - 1)).T @ counts
    observed = (coincidences * distance).sum() / n
    return _beyond_chance(observed, totals @ distance @ totals / (n * (n - 1)))


def _gwet_of(values: Values, counts: Array, distance_of: _Distance) -> float | None:
    counts = counts[counts.sum(1) >= 1]
    several, q, distance = counts[counts.sum(1) >= 2], len(values), distance_of(values, counts)
    if q < 2 or not len(several):
        return None
    weights = 1 - distance / distance.max()
    sizes = several.sum(1)
    agreement = ((several * (several @ weights - 1)).sum(1) / (sizes * (sizes - 1))).mean()
    shares = (counts / counts.sum(1, keepdims=True)).mean(0)
    chance = weights.sum() / (q * (q - 1)) * (shares * (1 - shares)).sum()
    return _beyond_chance(1 - agreement, 1 - chance)


def _check_sizes(counts: Array) -> None:
    """Raise `ValueError` unless all units have the same number of ratings."""
    sizes = [int(size) for size in counts.sum(1)]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else 0
    others = [f"{unit} has {size}" for unit, size in enumerate(sizes) if size != usual]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise ValueError(
            f"Fleiss' kappa needs the same number of ratings for every unit, here {usual}, but unit "
            f"{', '.join(others[:5])}{more}; use krippendorff_alpha"
        )


def _beyond_chance(observed: float, expected: float) -> float | None:
    return float(1 - observed / expected) if expected else None


# The disagreement [values, values] of every two ratings. totals: how often each rating was given.


def _unequal(values: Values, totals: Array) -> Array:
    return 1 - np.eye(len(values))


def _quadratic(values: Values, totals: Array) -> Array:
    numbers = np.array(values, dtype=float)
    return (numbers[:, None] - numbers) ** 2


def _ordinal(values: Values, totals: Array) -> Array:
    return _quadratic(np.cumsum(totals) - totals / 2, totals)


_Distance = Callable[[Values, Array], Array]
_COEFFICIENTS: dict[Coefficient, Callable[[Values, Array], float | None]] = {
    "agreement": _agreement_of,
    "fleiss_kappa": _fleiss_of,
    "gwet_ac1": lambda values, counts: _gwet_of(values, counts, _unequal),
    "gwet_ac2": lambda values, counts: _gwet_of(values, counts, _quadratic),
    "alpha_nominal": lambda values, counts: _alpha_of(values, counts, _unequal),
    "alpha_ordinal": lambda values, counts: _alpha_of(values, counts, _ordinal),
}
_LEVELS: dict[str, _Distance] = {"nominal": _unequal, "ordinal": _ordinal, "interval": _quadratic}


def _missing(rating: Any) -> bool:
    return rating is None or rating != rating  # only NaN differs from itself


def _values(ratings: Iterable[Rating], numbers_for: str | None) -> list[Any]:
    """The different ratings: in order of appearance, or sorted if the distance named by `numbers_for` needs numbers."""
    values: list[Any] = list(dict.fromkeys(ratings))
    if numbers_for is None:
        return values
    for value in values:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{numbers_for}: ratings must be finite numbers, not {value!r}")
    return sorted(values)


def _counted(
    units: Sequence[Unit], numbers_for: str | None = None, also: Sequence[Rating] = ()
) -> tuple[list[Any], Array]:
    """The different ratings, and the count of each for every unit [units, values]. also: ratings that may not occur."""
    known = [[rating for rating in unit if not _missing(rating)] for unit in units]
    values = _values((rating for unit in [*known, also] for rating in unit), numbers_for)
    index = {value: number for number, value in enumerate(values)}
    counts = np.zeros((len(known), len(values)))
    for row, unit in zip(counts, known, strict=True):
        for rating in unit:
            row[index[rating]] += 1
    return values, counts


def _pairs(counts: Array) -> Array:
    return counts * (counts - 1) / 2
