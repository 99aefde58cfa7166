"""The intervals of agreement; its values are held by the known answers of tests/net."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignkit_plugins.people.agreement import agreement_of


def test_an_interval_is_around_its_coefficient() -> None:
    """Of two labelers of whom the second one repeats the first in 60% of units, else tosses a
    coin.
    """
    random = np.random.default_rng(300)
    first, coin = random.integers(0, 2, (2, 300))
    second = np.where(random.random(300) < 0.6, first, coin)
    units = np.stack([first, second], 1).tolist()
    found = agreement_of(units)
    # The standard error of a share is sqrt(p (1 - p) / n). Chance is 1/2, so alpha varies twice as
    # much.
    width = 2 * 1.96 * math.sqrt(0.8 * 0.2 / 300)
    for one, expected in ((found["same"], width), (found["alpha"], 2 * width)):
        assert one["n"] == 300
        assert one["mean"] is not None and one["low"] is not None and one["high"] is not None
        assert one["low"] < one["mean"] < one["high"]
        assert one["high"] - one["low"] == pytest.approx(expected, rel=0.1)
    assert agreement_of(units, seed=1)["alpha"]["low"] != found["alpha"]["low"]
    assert agreement_of([*units, [1, None], [2], [1, math.nan]]) == found


def test_no_interval_without_two_units_or_a_coefficient() -> None:
    assert agreement_of([[1, 2]])["alpha"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    assert agreement_of([[1, 2], [2, 1]])["alpha"]["mean"] == -0.5
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert agreement_of([]) == {"same": nothing, "alpha": nothing}
    # Most draws have one rating only
    assert agreement_of([[1, 1], [1, 1], [2, 1]])["alpha"]["low"] is None


def test_units_of_a_cluster_are_drawn_together() -> None:
    """Four copies of each unit say nothing new, so the interval is about that of one copy."""
    units = ["aa", "bb", "ab", "aa", "ba", "bb"] * 10
    names = [place for place in range(len(units)) for _ in range(4)]
    one = agreement_of([*map(list, units)])
    four = agreement_of([list(units[place]) for place in names], clusters=names)
    for key in ("same", "alpha"):
        assert four[key]["n"] == 4 * one[key]["n"]
        assert four[key]["low"] == pytest.approx(one[key]["low"], abs=0.01)
        assert four[key]["high"] == pytest.approx(one[key]["high"], abs=0.01)
