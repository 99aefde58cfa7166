"""Agreement between people who rank the same things, with ties: Kendall's tau-b and W.

A ranking is a list with a rank for each thing; a lower rank is better, and equal ranks are a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from alignkit.evaluation import statistics


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How alike two rankings order the same things, from -1 to 1, with ties; None if a ranking is one tie.

    Kendall 1945, "The treatment of ties in ranking problems". Raises `ValueError` for different lengths.
    """
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"both rankings must order the same things, but have {len(first)} and {len(second)}")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.kendalltau(first, second, variant="b").statistic)


def mean_tau_b(rankings: Sequence[Sequence[float]]) -> float | None:
    """The mean of `kendall_tau_b` over all pairs of rankings of the same things; None if there is none."""
    found = [tau for one, other in combinations(rankings, 2) if (tau := kendall_tau_b(one, other)) is not None]
    return statistics.mean(found) if found else None


def kendall_w(rankings: Sequence[Sequence[float]]) -> float | None:
    """Concordance of several rankings of the same things, from 0 to 1; `rankings[r]` has a rank for each.

    Kendall and Babington Smith 1939, "The problem of m rankings", with the correction for ties of Kendall 1948, "Rank
    correlation methods". None for fewer than two rankings or things, or if everything is tied.

    Raises `ValueError` for rankings of different lengths.
    """
    from scipy import stats

    if len({len(ranking) for ranking in rankings}) > 1:
        raise ValueError(f"all rankings must order the same things, but have {sorted({*map(len, rankings)})} of them")
    m, n = len(rankings), len(rankings[0]) if rankings else 0
    if m < 2 or n < 2:
        return None
    ranks = np.array([stats.rankdata(ranking) for ranking in rankings])
    sums = ranks.sum(0)
    ties = sum(float((size**3 - size).sum()) for size in (np.unique(row, return_counts=True)[1] for row in ranks))
    scale = m**2 * (n**3 - n) - m * ties
    return float(12 * ((sums - sums.mean()) ** 2).sum() / scale) if scale else None
