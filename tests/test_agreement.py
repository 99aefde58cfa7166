"""Beyond the known answers of tests/golden: missing ratings, distances, undefined coefficients, and errors."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest

from alignkit.evaluation.agreement import bootstrap, interval, krippendorff_alpha, two_raters


def cohen_kappa(first: Any, second: Any) -> float | None:
    return two_raters([[pair] for pair in zip(first, second, strict=True)], seed=0)["kappa"]["mean"]


def pairwise_agreement(units: Any) -> float | None:
    return interval(units, "agreement")["mean"]


def fleiss_kappa(units: Any) -> float | None:
    return interval(units, "fleiss_kappa")["mean"]


def gwet_ac1(units: Any, categories: Any = ()) -> float | None:
    return interval(units, "gwet_ac1", categories=categories)["mean"]


def gwet_ac2(units: Any, categories: Any = ()) -> float | None:
    return interval(units, "gwet_ac2", categories=categories)["mean"]


COEFFICIENTS = [pairwise_agreement, fleiss_kappa, krippendorff_alpha]
UNITS = [[1, 1, 2], [2, 2, 2], [3, 1, 3], [3, 2, 3]]


def test_every_pair_of_ratings_of_a_unit_counts_once() -> None:
    assert pairwise_agreement([["a", "a", "a"], ["a", "b"]]) == 3 / 4
    assert pairwise_agreement([["a", "a", "b"], ["c"]]) == 1 / 3


@pytest.mark.parametrize("absent", [None, math.nan, float("nan")])
def test_a_missing_rating_is_no_rating(absent: Any) -> None:
    units = [[1, absent, 1], [absent, 2, 3], [absent, absent, 4]]
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha(units, level) == krippendorff_alpha([[1, 1], [2, 3]], level)
    assert pairwise_agreement(units) == 1 / 2
    assert fleiss_kappa([[1, absent, 1], [absent, 2, 3]]) == fleiss_kappa([[1, 1], [2, 3]])
    assert cohen_kappa([1, 2, absent, 3], [1, 3, 2, absent]) == cohen_kappa([1, 2], [1, 3])


def test_a_unit_with_one_rating_is_ignored() -> None:
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha([*UNITS, [9], [8]], level) == krippendorff_alpha(UNITS, level)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_who_gave_which_rating_does_not_matter(coefficient: Any) -> None:
    assert coefficient([unit[::-1] for unit in UNITS[::-1]]) == pytest.approx(coefficient(UNITS), abs=1e-15)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_units_may_come_in_any_order(level: Any) -> None:
    rotated = UNITS[1:] + UNITS[:1]  # 2 is met before 3 and 3 before 1
    assert krippendorff_alpha(rotated, level) == pytest.approx(krippendorff_alpha(UNITS, level), abs=1e-15)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_ratings_may_be_words(coefficient: Any) -> None:
    names = {1: "better", 2: "worse", 3: "unsure"}
    assert coefficient([[names[rating] for rating in unit] for unit in UNITS]) == coefficient(UNITS)
    assert cohen_kappa("aabb", "abbb") == cohen_kappa([0, 0, 1, 1], [0, 1, 1, 1]) == 0.5


def test_each_labeler_has_a_chance_distribution() -> None:
    """Cohen's expected disagreement pairs a rating of one labeler with one of the other: 0.75 * 0.5 + 0.25 * 0.5."""
    assert cohen_kappa([1, 1, 1, 0], [1, 1, 0, 0]) == pytest.approx(1 - 0.25 / 0.5)
    assert cohen_kappa([1, 1, 1, 1], [0, 0, 0, 1]) == pytest.approx(0)


def test_ordinal_depends_on_the_order_only() -> None:
    stretched = [[rating**5 for rating in unit] for unit in UNITS]
    assert krippendorff_alpha(stretched, "ordinal") == krippendorff_alpha(UNITS, "ordinal")
    assert krippendorff_alpha(stretched, "interval") != pytest.approx(krippendorff_alpha(UNITS, "interval"), abs=0.01)
    assert krippendorff_alpha([[3 * rating - 7 for rating in unit] for unit in UNITS], "interval") == pytest.approx(
        krippendorff_alpha(UNITS, "interval")
    )


def test_ordinal_distance_is_the_number_of_ratings_between() -> None:
    """Ratings 1, 1, 2, 3: 1 and 2 are 1.5 apart, 2 and 3 are 1, 1 and 3 are 2.5; squares 2.25, 1 and 6.25."""
    expected = (2 * 2.25 + 1 + 2 * 6.25) / 6
    assert krippendorff_alpha([[1, 2], [1, 3]], "ordinal") == pytest.approx(1 - (2.25 + 6.25) / 2 / expected)


@pytest.mark.parametrize("units", [[], [[]], [[1], [2]], [[None, 1], [math.nan, None]]])
@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_undefined_if_no_unit_has_two_ratings(coefficient: Any, units: Any) -> None:
    assert coefficient(units) is None


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, None], [None, 2]), ([3], [3]), ([0, 0], [0, 0])])
def test_cohen_is_undefined_if_chance_always_agrees(first: Any, second: Any) -> None:
    assert cohen_kappa(first, second) is None


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("rating", [0, 0.1, 7])
def test_equal_ratings_are_undefined_not_perfect(level: Any, rating: float) -> None:
    units = [[rating] * count for count in (3, 3, 3)]
    assert krippendorff_alpha([*units, [5]], level) is None
    assert fleiss_kappa(units) is None
    assert pairwise_agreement(units) == 1


def test_fleiss_pools_all_ratings_for_chance() -> None:
    """Of 12 ratings, 7 are a and 5 are b: two drawn by chance differ in 70 of 144 cases, here in 1 of 6."""
    assert fleiss_kappa(["aa", "aa", "bb", "bb", "ab", "aa"]) == pytest.approx(1 - (1 / 6) / (70 / 144))


def test_fleiss_names_the_units_with_another_number_of_ratings() -> None:
    with pytest.raises(ValueError, match=r"for every unit, here 3, but unit 1 has 2; use krippendorff_alpha$"):
        fleiss_kappa([[1, 2, 1], [1, None, 2], [2, 2, 2], []])
    with pytest.raises(ValueError, match=r"unit 8 has 3, 9 has 3, 10 has 3, 11 has 3, 12 has 3 and 2 more; use"):
        fleiss_kappa([[1, 2]] * 8 + [[1, 1, 2]] * 7)


@pytest.mark.parametrize("rating", ["better", math.inf])
def test_distances_need_numbers(rating: Any) -> None:
    for level in ("ordinal", "interval"):
        with pytest.raises(ValueError, match=f"{level}: ratings must be finite numbers, not {rating!r}"):
            krippendorff_alpha([[1, rating], [1, 2]], level)


def test_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="level must be nominal, ordinal, interval, not 'ratio'"):
        krippendorff_alpha([[1, 2]], "ratio")  # type: ignore[arg-type]


# Gwet's coefficients. Four raters and twelve units with missing ratings (Gwet 2014, table 2.10; the data set
# cac.raw4raters of his R package irrCAC, whose documentation gives AC1 = 0.77544 and p_e = 0.19032).

FOUR = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
]  # fmt: skip


def gwet(units: Any, weight: Any, categories: Any) -> Fraction:
    """Gwet's definition, by counting: a pair of ratings agrees by its weight, and so do two categories by chance."""
    known = [[rating for rating in unit if rating is not None] for unit in units]
    known = [unit for unit in known if unit]
    several = [unit for unit in known if len(unit) > 1]
    alike = [
        Fraction(sum(weight(*pair) for pair in permutations(unit, 2))) / (len(unit) * (len(unit) - 1))
        for unit in several
    ]
    share = {k: sum(Fraction(unit.count(k), len(unit)) for unit in known) / len(known) for k in categories}
    total = sum(Fraction(weight(k, j)) for k in categories for j in categories)
    q = len(categories)
    chance = total / (q * (q - 1)) * sum(p * (1 - p) for p in share.values())
    agreement = sum(alike) / len(several)
    return (agreement - chance) / (1 - chance)


def equal(one: int, other: int) -> int:
    return int(one == other)


def squared(one: int, other: int) -> Fraction:
    return 1 - Fraction((one - other) ** 2, 16)


def test_gwet_of_the_published_example() -> None:
    assert gwet_ac1(FOUR) == pytest.approx(0.77544, abs=5e-6)
    assert gwet_ac1(FOUR) == pytest.approx(float(gwet(FOUR, equal, range(1, 6))), abs=1e-14)
    assert krippendorff_alpha(FOUR) == pytest.approx(0.743421, abs=5e-7)  # of the same documentation


def test_gwet_with_weights() -> None:
    assert gwet_ac2(FOUR) == pytest.approx(float(gwet(FOUR, squared, range(1, 6))), abs=1e-14)


def test_ratings_that_were_possible_lower_chance() -> None:
    units = [[1, 1], [2, 2], [1, 2], [1, 1]]
    assert gwet_ac1(units, [1, 2, 3, 4, 5]) == pytest.approx(float(gwet(units, equal, range(1, 6))), abs=1e-14)
    assert gwet_ac2(units, categories=range(1, 6)) == pytest.approx(float(gwet(units, squared, range(1, 6))), abs=1e-14)


def test_gwet_is_not_misled_by_skew() -> None:
    """The paradox of kappa: 96 of 100 agree, but nearly all are `a`."""
    units = [["a", "a"]] * 95 + [["b", "b"]] + [["a", "b"]] * 2 + [["b", "a"]] * 2
    assert cohen_kappa(*zip(*units, strict=True)) == pytest.approx(0.31, abs=0.01)
    assert gwet_ac1(units) == pytest.approx(1 - 0.04 / (1 - 2 * 0.97 * 0.03), abs=1e-12)


def test_gwet_is_undefined_without_two_categories_or_two_ratings() -> None:
    for units in ([], [[1], [2]], [[1, 1], [1, 1]], [[None, 1]]):
        assert gwet_ac1(units) is None and gwet_ac2(units) is None
    assert gwet_ac1([[1, 1], [1, 1]], [1, 2]) == 1
    with pytest.raises(ValueError, match="ratings must be finite numbers"):
        gwet_ac2([["a", "b"]])


# Intervals


def drawn(n: int, share: float) -> list[list[int]]:
    """Two labelers of whom the second one repeats the first with this probability, else tosses a coin."""
    import numpy as np

    random = np.random.default_rng(n)
    first, coin = random.integers(0, 2, n), random.integers(0, 2, n)
    second = np.where(random.random(n) < share, first, coin)
    return [[int(a), int(b)] for a, b in zip(first, second, strict=True)]


NAMES = ["agreement", "fleiss_kappa", "gwet_ac1", "gwet_ac2", "alpha_nominal", "alpha_ordinal"]


@pytest.mark.parametrize("name", NAMES)
def test_an_interval_is_around_its_coefficient(name: Any) -> None:
    units = drawn(300, 0.6)
    found = interval(units, name)
    assert found["n"] == 300
    if name.startswith("alpha"):
        assert found["mean"] == krippendorff_alpha(units, name.removeprefix("alpha_"))
    assert found["low"] is not None and found["high"] is not None
    assert found["low"] < found["mean"] < found["high"]
    # The standard error of a share is sqrt(p (1 - p) / n). Chance is 1/2, so the others vary twice as much.
    width = 2 * 1.96 * math.sqrt(0.8 * 0.2 / 300) * (1 if name == "agreement" else 2)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.2)
    assert interval(units, name) == found


def test_units_with_one_rating_count_for_gwets_chance_only() -> None:
    units = [*drawn(50, 0.6), *[[1, None]] * 50]
    assert gwet_ac1(units) != gwet_ac1(units[:50])
    assert interval(units, "agreement")["n"] == 50
    assert fleiss_kappa(units) == fleiss_kappa(units[:50])


def test_no_interval_without_two_units_or_a_coefficient() -> None:
    assert interval([[1, 2]], "agreement") == {"mean": 0.0, "low": None, "high": None, "n": 1}
    assert interval([], "agreement") == {"mean": None, "low": None, "high": None, "n": 0}
    assert interval([[1, 1], [1, 1], [2, 1]], "alpha_nominal")["low"] is None  # most draws have one rating only
    assert bootstrap(1.0, 5, lambda drawn: None)["low"] is None


def test_ac1_of_a_frequent_rating() -> None:
    """Of 125 units both say yes at 118 and differ at 7: they agree in 0.944, yet kappa is below 0."""
    first = ["yes"] * 118 + ["yes"] * 5 + ["no"] * 2
    second = ["yes"] * 118 + ["no"] * 5 + ["yes"] * 2
    yes = (123 + 120) / 250
    chance = 2 * yes * (1 - yes)
    ac1 = gwet_ac1(list(zip(first, second, strict=True)))
    assert ac1 == pytest.approx((118 / 125 - chance) / (1 - chance))
    assert ac1 == pytest.approx(0.9408, abs=1e-4)
    kappa = cohen_kappa(first, second)
    assert kappa is not None and kappa == pytest.approx(-0.0234, abs=1e-4)


def test_ac1_of_half_the_units() -> None:
    """Half agree: shares 1/2 and 1/2, so chance is 1/2 of two ratings and 1/4 of three."""
    units = [[1, 1], [2, 2], [1, 2], [2, 1]]
    assert gwet_ac1(units) == pytest.approx(0)
    assert gwet_ac1(units, [1, 2, 3]) == pytest.approx((0.5 - 0.25) / 0.75)


def test_two_raters_agree_as_the_coefficients_say() -> None:
    units = drawn(300, 0.6)
    found = two_raters([[(one, other)] for one, other in units], seed=0)
    assert found["ac1"]["mean"] == pytest.approx(gwet_ac1(units))
    both = interval(units, "gwet_ac1")
    assert found["ac1"]["low"] == pytest.approx(both["low"], abs=0.01)
    assert found["ac1"]["high"] == pytest.approx(both["high"], abs=0.01)


def test_units_of_a_cluster_are_drawn_together() -> None:
    """Four copies of each unit say nothing new, so the interval is that of one copy."""
    units = [["a", "a"], ["b", "b"], ["a", "b"], ["a", "a"], ["b", "a"], ["b", "b"]] * 3
    names = [place for place in range(len(units)) for _ in range(4)]
    one = interval(units, "agreement")
    four = interval([units[place] for place in names], "agreement", clusters=names)
    assert (four["mean"], four["low"], four["high"]) == (one["mean"], one["low"], one["high"])
    assert four["n"] == 4 * one["n"]
