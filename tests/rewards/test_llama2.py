"""Llama 2's reward: which model decides, and what a missing score does."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from alignkit import CombinedReward, Group, Response, RunFailed
from alignkit_plugins.rewards.llama2 import Llama2, safety_prompts
from tests.by_hand import double

NAN = math.nan
# -1.7346, where the safety model takes over; a threshold on the raw score would be 0.15.
LOGIT = math.log(0.15 / 0.85)


def combine(
    helpful: Sequence[float], safety: Sequence[float], *groups: Group, **options: Any
) -> CombinedReward:
    """Of one group with a response per score, or of these."""
    thing = Llama2(Llama2.Options(helpful="helpful", safety="safety", **options))
    return thing.combine(
        groups or [group(len(helpful))], {"helpful": double(helpful), "safety": double(safety)}
    )


def group(count: int, **meta: Any) -> Group:
    return Group(prompt=(), responses=(Response(),) * count, meta=meta, id="p1")


def test_safety_decides_strictly_below_the_threshold_and_on_safety_prompts() -> None:
    """The threshold is a probability."""
    found = combine([3.0] * 4, [LOGIT - 1e-6, LOGIT + 1e-6, -5.0, 0.0])
    assert found.reward.tolist() == [LOGIT - 1e-6, 3.0, -5.0, 3.0]
    assert found.metrics["safety_share"] == 0.5
    never = {"threshold": 0.0}
    for flag, options, raw in (
        (True, {}, [-5.0, 5.0]),
        (False, {}, [-5.0, 1.0]),
        (True, never, [-5.0, 5.0]),
        (False, never, [3.0, 1.0]),
    ):
        found = combine([3.0, 1.0], [-5.0, 5.0], group(2, safety=flag), **options)
        assert found.reward.tolist() == raw


def test_a_missing_score_moves_no_safety_prompt_to_another_row() -> None:
    """The first response of a safety prompt has no score; the other group's safety scores must not
    count.
    """
    groups = [group(2, safety=True), group(2), group(1, safety=0)]
    assert safety_prompts(groups) == [True, True, False, False, False]
    combined = combine([NAN, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0], *groups)
    assert combined.reward[1:].tolist() == [6.0, 2.0, 3.0, 4.0] and bool(combined.reward[0].isnan())


@pytest.mark.parametrize("value", ["yes", "false", 2, 0.5])
def test_safety_column_that_is_no_flag_is_an_error(value: object) -> None:
    with pytest.raises(RunFailed, match="prompt p1 is"):
        combine([1.0], [1.0], group(1, safety=value))


def test_means_are_of_what_was_chosen() -> None:
    combined = combine([1.0, 2.0, 3.0, 9.0], [0.0, 0.0, 0.0, -4.0])
    assert combined.reward.tolist() == [1.0, 2.0, 3.0, -4.0]
    assert combined.metrics == pytest.approx(
        {"helpful_mean": 3.75, "safety_mean": -1.0, "safety_share": 0.25, "raw_mean": 0.5}
    )


def test_missing_scores_stay_nan_and_leave_the_others_alone() -> None:
    """The third has a low safety score and the second a missing one, which must not read as "safe
    enough".
    """
    whole = combine([1.0, 2.0], [0.0, 1.0])
    holed = combine([1.0, 7.0, NAN, 2.0], [0.0, NAN, -9.0, 1.0])
    assert holed.reward.isnan().tolist() == [False, True, True, False]
    assert torch.equal(holed.reward[[0, 3]], whole.reward)
    assert holed.metrics == whole.metrics
    assert combine([NAN, NAN], [1.0, NAN]).reward.isnan().all()


def test_parts_are_the_two_references() -> None:
    assert list(Llama2(Llama2.Options(helpful="a", safety="b")).parts()) == ["helpful", "safety"]
