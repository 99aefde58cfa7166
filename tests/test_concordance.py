"""Kendall's coefficients against worked examples, and against scipy's Friedman test."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from alignkit.evaluation.concordance import kendall_tau_b, kendall_w, mean_tau_b

SEVEN = [[3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2]]


def test_tau_b_counts_ties() -> None:
    """Kendall 1945: of 6 pairs, 4 in the same order, 1 in the opposite one, 1 tied in the second: 3 / sqrt(6 * 5)."""
    assert kendall_tau_b([1, 2, 3, 4], [1, 2, 4, 2]) == pytest.approx(3 / math.sqrt(6 * 5))
    assert kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau_b([1, 1], [1, 2]) is None
    assert mean_tau_b([[1, 2, 3], [1, 2, 3], [3, 2, 1]]) == pytest.approx((1 - 1 - 1) / 3)
    assert mean_tau_b([[1, 2]]) is None
    with pytest.raises(ValueError, match="have 2 and 3"):
        kendall_tau_b([1, 2], [1, 2, 3])


def test_w_of_a_worked_example() -> None:
    """Three judges, six things; sums of ranks 8, 14, 11, 11, 11, 8: S = 25.5, 12 * 25.5 / (9 * 210) = 0.1619."""
    ranks = [[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]]
    assert kendall_w(ranks) == pytest.approx(12 * 25.5 / (9 * 210))
    assert kendall_w([[1, 2, 3]] * 4) == 1
    assert kendall_w([[1, 2], [2, 1]]) == 0
    assert kendall_w([[1, 1], [1, 1]]) is None and kendall_w([[1, 2]]) is None and kendall_w([]) is None
    with pytest.raises(ValueError, match=r"have \[2, 3\]"):
        kendall_w([[1, 2], [1, 2, 3]])


@pytest.mark.parametrize("ranks", [SEVEN, [[1, 2, 2, 4], [1, 1, 3, 4], [2, 1, 3, 3]]])
def test_w_is_friedmans_statistic_divided_by_its_greatest_value(ranks: Any) -> None:
    m, n = len(ranks), len(ranks[0])
    if any(len(set(row)) > 1 for row in ranks):
        friedman = stats.friedmanchisquare(*zip(*ranks, strict=True)).statistic
        assert kendall_w(ranks) == pytest.approx(friedman / (m * (n - 1)))
