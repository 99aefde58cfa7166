"""Beyond the known answers of tests/golden: missing ratings, distances, undefined coefficients, and
errors.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from alignkit_plugins.people.agreement import agreement_of


def pairwise_agreement(units: Any) -> float | None:
    return agreement_of(units)["same"]["mean"]


def alpha(units: Any) -> float | None:
    return agreement_of(units)["alpha"]["mean"]


COEFFICIENTS = [pairwise_agreement, alpha]
UNITS = [[1, 1, 2], [2, 2, 2], [3, 1, 3], [3, 2, 3]]


def test_every_pair_of_ratings_of_a_unit_counts_once() -> None:
    assert pairwise_agreement([["a", "a", "a"], ["a", "b"]]) == 3 / 4
    assert pairwise_agreement([["a", "a", "b"], ["c"]]) == 1 / 3


@pytest.mark.parametrize("absent", [None, math.nan, float("nan")])
def test_a_missing_rating_is_no_rating(absent: Any) -> None:
    units = [[1, absent, 1], [absent, 2, 3], [absent, absent, 4]]
    assert alpha(units) == alpha([[1, 1], [2, 3]])
    assert pairwise_agreement(units) == 1 / 2


def test_a_unit_with_one_rating_is_ignored() -> None:
    assert alpha([*UNITS, [9], [8]]) == alpha(UNITS)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_who_gave_which_rating_does_not_matter(coefficient: Any) -> None:
    assert coefficient([unit[::-1] for unit in UNITS[::-1]]) == pytest.approx(
        coefficient(UNITS), abs=1e-15
    )


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_ratings_may_be_words(coefficient: Any) -> None:
    names = {1: "better", 2: "worse", 3: "unsure"}
    assert coefficient([[names[rating] for rating in unit] for unit in UNITS]) == coefficient(UNITS)


@pytest.mark.parametrize("units", [[], [[]], [[1], [2]], [[None, 1], [math.nan, None]]])
@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_undefined_if_no_unit_has_two_ratings(coefficient: Any, units: Any) -> None:
    assert coefficient(units) is None


def test_equal_ratings_are_undefined_not_perfect() -> None:
    units = [[0.1] * count for count in (3, 3, 3)]
    assert alpha([*units, [5]]) is None
    assert pairwise_agreement(units) == 1


def test_the_published_example() -> None:
    """Four raters and twelve units (Gwet 2014, table 2.10; cac.raw4raters of the R package irrCAC
    gives its alpha).
    """
    four = [
        [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
        [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
    ]  # fmt: skip
    assert alpha(four) == pytest.approx(0.743421, abs=5e-7)


# Intervals


def drawn(n: int, share: float) -> list[list[int]]:
    """Two labelers of whom the second one repeats the first with this probability, else tosses a
    coin.
    """
    import numpy as np

    random = np.random.default_rng(n)
    first, coin = random.integers(0, 2, n), random.integers(0, 2, n)
    second = np.where(random.random(n) < share, first, coin)
    return [[int(a), int(b)] for a, b in zip(first, second, strict=True)]


def test_an_interval_is_around_its_coefficient() -> None:
    units = drawn(300, 0.6)
    found = agreement_of(units)
    # The standard error of a share is sqrt(p (1 - p) / n). Chance is 1/2, so alpha varies twice as
    # much.
    width = 2 * 1.96 * math.sqrt(0.8 * 0.2 / 300)
    for one, expected in ((found["same"], width), (found["alpha"], 2 * width)):
        assert one["n"] == 300
        assert one["mean"] is not None and one["low"] is not None and one["high"] is not None
        assert one["low"] < one["mean"] < one["high"]
        assert one["high"] - one["low"] == pytest.approx(expected, rel=0.2)
    assert agreement_of([*units, [1, None], [2]]) == found


def test_no_interval_without_two_units_or_a_coefficient() -> None:
    assert agreement_of([[1, 2]])["alpha"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert agreement_of([]) == {"same": nothing, "alpha": nothing}
    # Most draws have one rating only
    assert agreement_of([[1, 1], [1, 1], [2, 1]])["alpha"]["low"] is None


def test_units_of_a_cluster_are_drawn_together() -> None:
    """Four copies of each unit say nothing new, so the interval is about that of one copy."""
    units = [["a", "a"], ["b", "b"], ["a", "b"], ["a", "a"], ["b", "a"], ["b", "b"]] * 10
    names = [place for place in range(len(units)) for _ in range(4)]
    one = agreement_of(units)
    four = agreement_of([units[place] for place in names], clusters=names)
    for key in ("same", "alpha"):
        assert four[key]["n"] == 4 * one[key]["n"]
        assert four[key]["low"] == pytest.approx(one[key]["low"], abs=0.01)
        assert four[key]["high"] == pytest.approx(one[key]["high"], abs=0.01)
