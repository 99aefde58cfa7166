"""Agreement between raters, in percent and beyond chance.

A unit is a rated item, such as a prompt with two responses. `units[u]` holds the ratings of unit u
in any order; None or NaN is a missing rating. Ratings are any hashable values, of which only the
equality matters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import chain, combinations
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from alignkit import seeds
from alignkit.evaluation.statistics import CONFIDENCE, Estimate, clustered_share

Unit = Sequence[Hashable]
Array = NDArray[np.float64]
REPETITIONS = 2000  # of the bootstrap


class Agreement(TypedDict):
    """How far raters agree. same: the share of equal ratings; alpha: Krippendorff's. n: units with
    two ratings.
    """

    same: Estimate
    alpha: Estimate


def agreement_of(
    units: Sequence[Unit], *, clusters: Sequence[Hashable] = (), seed: int = 0
) -> Agreement:
    """Percent agreement and Krippendorff's alpha, each with its 95% interval.

    Alpha is agreement of any number of raters beyond chance, for nominal data with missing ratings
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"): 1 is perfect, 0 is chance,
    and negative values are worse. Units with fewer than two ratings are left out. It is None if all
    ratings are equal, so that chance could never disagree, or if no unit has two.

    Every two ratings of a unit count once in the percent agreement; its interval is that of
    `clustered_share`. InstructGPT's labelers agreed on 72.6% of comparisons (Ouyang et al. 2022,
    arXiv:2203.02155, section 3.4). The interval of alpha has the percentiles of 2,000 bootstrap
    draws of clusters (Efron 1979, "Bootstrap methods: another look at the jackknife"); there is
    none if alpha is not defined for nearly all of them.

    Args:
        units: The ratings of each unit.
        clusters: A name for each unit; units with the same one depend on each other. Default: none
            do.
        seed: Of the bootstrap.
    """
    shared: dict[Hashable, list[list[Hashable]]] = defaultdict(list)
    for name, unit in zip(clusters or range(len(units)), units, strict=True):
        # Only NaN differs from itself.
        ratings = [rating for rating in unit if rating is not None and rating == rating]
        if len(ratings) > 1:
            shared[name].append(ratings)
    rated = [*chain.from_iterable(shared.values())]
    values = [*dict.fromkeys(chain.from_iterable(rated))]
    alike: list[list[float]] = []
    agreeing = np.zeros(len(shared))  # of each cluster, see `_alpha`
    totals = np.zeros((len(shared), len(values)))
    for number, those in enumerate(shared.values()):
        alike.append([])
        for unit in those:
            alike[number] += [float(one == other) for one, other in combinations(unit, 2)]
            counts = np.array([unit.count(value) for value in values])
            agreeing[number] += counts @ (counts - 1) / (len(unit) - 1)
            totals[number] += counts
    same: Estimate = {"mean": None, "low": None, "high": None, "n": len(rated)}
    if share := clustered_share(alike):
        same = {**share, "n": len(rated)}
    mean = _alpha(agreeing.sum(), totals.sum(0))
    alpha: Estimate = {"mean": mean, "low": None, "high": None, "n": len(rated)}
    n = len(shared)
    if mean is not None and n > 1:
        draws = seeds.stream(seed, "agreement", n).integers(0, n, size=(REPETITIONS, n))
        spread = []
        for drawn in draws:
            value = _alpha(agreeing[drawn].sum(), totals[drawn].sum(0))
            if value is not None:
                spread.append(value)
        if len(spread) >= 0.95 * REPETITIONS:
            tail = (1 - CONFIDENCE) / 2
            alpha["low"], alpha["high"] = np.quantile(spread, [tail, 1 - tail]).tolist()
    return {"same": same, "alpha": alpha}


def _alpha(agreeing: float, totals: Array) -> float | None:
    """Alpha from the ratings that agree with another one of their unit, weighted by 1 / (the unit's
    ratings - 1), and from how often each value was rated.
    """
    n = totals.sum()
    differing = n * (n - 1) - totals @ (totals - 1)  # pairs of all ratings that chance would make
    if differing <= 0:
        return None
    return float(1 - (n - agreeing) * (n - 1) / differing)
