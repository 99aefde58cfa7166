"""Differences between looks, with intervals over prompts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alignkit_plugins.monitors.reward_hacking import LEAST, change


def test_common_prompts_are_compared_with_themselves() -> None:
    rng = np.random.default_rng(0)
    difficulty, noise = rng.normal(0, 10, 20), rng.normal(0, 0.1, 20)
    before = {f"p{n}": float(difficulty[n]) for n in range(20)}
    after = {f"p{n}": float(difficulty[n] + 1 + noise[n]) for n in range(20)}
    found = change(before, after, 0.05)
    assert found is not None
    differences = 1 + noise
    low, high = stats.t.interval(0.95, 19, loc=differences.mean(), scale=stats.sem(differences))
    assert (found.mean, found.low, found.high) == pytest.approx((differences.mean(), low, high))
    assert found.after - found.before == pytest.approx(found.mean) and found.prompts == 20


def test_other_prompts_are_compared_as_independent() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(1, 1, 12), rng.normal(0, 3, 30)
    found = change(
        {f"a{n}": float(x) for n, x in enumerate(theirs)},
        {f"b{n}": float(x) for n, x in enumerate(ours)},
    )
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_smaller_level_is_a_wider_interval() -> None:
    before, after = {str(n): 0.0 for n in range(10)}, {str(n): float(n) for n in range(10)}
    wide, plain = change(before, after, 0.001), change(before, after)
    assert wide is not None and plain is not None
    assert wide.low < plain.low < plain.mean < plain.high < wide.high


def test_too_few_prompts_say_nothing() -> None:
    few = {str(n): float(n) for n in range(LEAST - 1)}
    assert change(few, few) is None
    assert change({}, {}) is None
    assert change({**few, "more": 1.0}, {**few, "more": 1.0}) is not None


def test_a_fall_is_negative_and_equal_falls_are_certain() -> None:
    found = change({str(n): 1.0 for n in range(9)}, {str(n): 0.0 for n in range(9)})
    assert found is not None and (found.mean, found.low, found.high) == (-1.0, -1.0, -1.0)
    assert str(found) == "-1.00 [-1.00, -1.00]"
