"""Agreement between raters, in percent and beyond chance.

A unit is a rated item, such as a prompt with two responses. `units[u]` holds the ratings of unit u
in any order; None or NaN is a missing rating. Ratings are numbers, or any hashable values if only
their equality matters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import chain, combinations
from numbers import Real
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from alignkit import seeds
from alignkit.evaluation.statistics import CONFIDENCE, Estimate, clustered_share

Rating = Hashable
Unit = Sequence[Rating]
Level = Literal["nominal", "ordinal", "interval"]
LEVELS = ("nominal", "ordinal", "interval")
Array = NDArray[np.float64]
REPETITIONS = 2000  # of a bootstrap


class Agreement(TypedDict):
    """How far raters agree. same: the share of equal ratings; alpha: Krippendorff's. n: units with
    two ratings.
    """

    same: Estimate
    alpha: Estimate


def krippendorff_alpha(units: Sequence[Unit], level: Level = "nominal") -> float | None:
    """Agreement of any number of raters beyond chance, with missing ratings.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability". 1 is perfect agreement, 0 is
    chance, and negative values are worse than chance. Units with fewer than two ratings are left
    out. None if all ratings are equal, so that chance could never disagree, or if no unit has two
    ratings.

    level: the distance of two ratings. `nominal`: equal or not. `ordinal`: the number of ratings
    between them, squared. `interval`: their difference, squared. Raises `ValueError` for an unknown
    level, or for ratings that are not numbers unless the level is nominal.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be {', '.join(LEVELS)}, not {level!r}")
    several = [unit for unit in _known(units) if len(unit) > 1]
    values, counts = _counted(several, level)
    return _alpha(values, _coincidences(counts).sum(0), counts.sum(0), level)


def agreement_of(
    units: Sequence[Unit],
    level: Level = "nominal",
    *,
    clusters: Sequence[Hashable] = (),
    seed: int = 0,
) -> Agreement:
    """Percent agreement and `krippendorff_alpha`, each with its 95% interval.

    Every two ratings of a unit count once in the percent agreement; its interval is that of
    `clustered_share`. InstructGPT's labelers agreed on 72.6% of comparisons (Ouyang et al. 2022,
    arXiv:2203.02155, section 3.4). The interval of alpha is of a `bootstrap` over clusters.

    Args:
        units: The ratings of each unit.
        level: The distance of two ratings, as in `krippendorff_alpha`.
        clusters: A name for each unit; units with the same one depend on each other. Default: none
            do.
        seed: Of the bootstrap.
    """
    several: list[Unit] = []
    rows: dict[Hashable, list[int]] = defaultdict(list)
    alike: dict[Hashable, list[float]] = defaultdict(list)
    for name, unit in zip(clusters or range(len(units)), _known(units), strict=True):
        if len(unit) > 1:
            rows[name].append(len(several))
            alike[name] += [float(one == other) for one, other in combinations(unit, 2)]
            several.append(unit)
    same: Estimate = {"mean": None, "low": None, "high": None, "n": 0}
    if share := clustered_share(list(alike.values())):
        same = {**share, "n": len(several)}
    values, counts = _counted(several, level)
    pairs = _coincidences(counts)
    # [clusters, values, values] and [clusters, values]
    pairs_of = np.array([pairs[each].sum(0) for each in rows.values()])
    totals_of = np.array([counts[each].sum(0) for each in rows.values()])

    def again(drawn: NDArray[np.int64]) -> float | None:
        return _alpha(values, pairs_of[drawn].sum(0), totals_of[drawn].sum(0), level)

    alpha = bootstrap(
        _alpha(values, pairs.sum(0), counts.sum(0), level), len(rows), again, seed=seed
    )
    return {"same": same, "alpha": {**alpha, "n": len(several)}}


def bootstrap(
    found: float | None,
    n: int,
    again: Callable[[NDArray[np.int64]], float | None],
    *,
    seed: int = 0,
) -> Estimate:
    """A statistic of n units with its bootstrap interval: percentiles of 2,000 draws of units.

    Efron 1979, "Bootstrap methods: another look at the jackknife". No interval means that the
    statistic is not defined for nearly all draws. again: the statistic of the units with these
    indices.
    """
    estimate: Estimate = {"mean": found, "low": None, "high": None, "n": n}
    if found is None or n < 2:
        return estimate
    draws = seeds.stream(seed, "agreement", n).integers(0, n, size=(REPETITIONS, n))
    spread = [value for drawn in draws if (value := again(drawn)) is not None]
    if len(spread) >= 0.95 * REPETITIONS:
        tail = (1 - CONFIDENCE) / 2
        estimate["low"], estimate["high"] = np.quantile(spread, [tail, 1 - tail]).tolist()
    return estimate


def _alpha(values: Sequence[Any], pairs: Array, totals: Array, level: Level) -> float | None:
    """Alpha of coincidences [values, values] and of how often each value was rated [values]."""
    n = totals.sum()
    if n == 0:
        return None
    distance = 1 - np.eye(len(values))
    if level != "nominal":
        numbers = (
            np.array(values, dtype=float) if level == "interval" else np.cumsum(totals) - totals / 2
        )
        distance = (numbers[:, None] - numbers) ** 2
    expected = totals @ distance @ totals / (n * (n - 1))
    return float(1 - (pairs * distance).sum() / n / expected) if expected else None


def _coincidences(counts: Array) -> Array:
    """How often each two values are together in a unit, by its other ratings: [units, values,
    values].

    The coincidence of a rating with itself is not subtracted: it is on the diagonal, whose distance
    is 0.
    """
    return counts[:, :, None] * counts[:, None, :] / (counts.sum(1) - 1)[:, None, None]


def _known(units: Sequence[Unit]) -> list[list[Rating]]:
    """The units without missing ratings. Only NaN differs from itself."""
    return [
        [rating for rating in unit if rating is not None and rating == rating] for unit in units
    ]


def _counted(units: Sequence[Unit], level: Level) -> tuple[list[Any], Array]:
    """The different ratings, and the count of each for every unit: [units, values]."""
    values: list[Any] = list(dict.fromkeys(chain.from_iterable(units)))
    if level != "nominal":
        for value in values:
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{level}: ratings must be finite numbers, not {value!r}")
        values.sort()
    index = {value: number for number, value in enumerate(values)}
    counts = np.zeros((len(units), len(values)))
    for row, unit in zip(counts, units, strict=True):
        for rating in unit:
            row[index[rating]] += 1
    return values, counts
