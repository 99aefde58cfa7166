"""Llama 2's reward: which model decides, the whitening, and what a missing score does."""

import math
from typing import Any

import pytest
import torch

import alignkit_plugins.algorithms.llama2
from alignkit import CombinedReward, Group, Response, RunFailed
from alignkit_plugins.algorithms.llama2 import Llama2

LOGIT_OF_015 = math.log(0.15 / 0.85)  # -1.7346, where the safety model takes over
NAN = math.nan


def combine(
    helpful: list[float], safety: list[float], *, meta: dict[str, Any] | None = None, **options: Any
) -> CombinedReward:
    """One group with a response per score."""
    thing = Llama2(Llama2.Options(helpful="helpful", safety="safety", **options))
    group = Group(prompt=(), responses=tuple(Response() for _ in helpful), meta=meta or {}, id="p1")
    columns = {"helpful": helpful, "safety": safety}
    return thing.combine(
        [group], {name: torch.tensor(x, dtype=torch.float64) for name, x in columns.items()}
    )


def test_safety_decides_strictly_below_the_threshold_on_the_probability_scale() -> None:
    below, above = LOGIT_OF_015 - 1e-6, LOGIT_OF_015 + 1e-6
    # A threshold on the raw score would be 0.15, and all four would be judged by the safety model.
    combined = combine([3.0, 3.0, 3.0, 3.0], [below, above, -5.0, 0.0])
    assert combined.raw.tolist() == [below, 3.0, -5.0, 3.0]
    assert combined.metrics["safety_share"] == 0.5


def test_safety_decides_on_safety_prompts() -> None:
    assert combine([3.0, 1.0], [2.0, 5.0], meta={"safety": True}).raw.tolist() == [2.0, 5.0]
    assert combine([3.0, 1.0], [2.0, 5.0], meta={"safety": False}).raw.tolist() == [3.0, 1.0]


def test_with_threshold_0_an_unsafe_answer_to_a_helpful_prompt_counts_as_helpful() -> None:
    assert combine([3.0, 1.0], [-900.0, -1.0], threshold=0.0).raw.tolist() == [3.0, 1.0]
    assert combine([3.0, 1.0], [2.0, 5.0], meta={"safety": True}, threshold=0.0).raw.tolist() == [
        2.0,
        5.0,
    ]


def test_safety_column_belongs_to_its_own_group() -> None:
    groups = [
        Group(prompt=(), responses=(Response(), Response()), meta={"safety": True}),
        Group(prompt=(), responses=(Response(),)),
        Group(prompt=(), responses=(Response(), Response()), meta={"safety": 0}),
    ]
    assert alignkit_plugins.algorithms.llama2.safety_prompts(groups) == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_missing_score_moves_no_safety_prompt_to_another_row() -> None:
    """The first response of a safety prompt has no score; the other group's safety scores must not
    count.
    """
    groups = [
        Group(prompt=(), responses=(Response(), Response()), meta={"safety": True}),
        Group(prompt=(), responses=(Response(), Response())),
    ]
    columns = {"helpful": [NAN, 1.0, 2.0, 3.0], "safety": [5.0, 6.0, 7.0, 8.0]}
    thing = Llama2(Llama2.Options(helpful="helpful", safety="safety"))
    combined = thing.combine(
        groups, {name: torch.tensor(x, dtype=torch.float64) for name, x in columns.items()}
    )
    assert combined.raw[1:].tolist() == [6.0, 2.0, 3.0] and bool(combined.raw[0].isnan())


@pytest.mark.parametrize("value", ["yes", "false", 2, 0.5])
def test_safety_column_that_is_no_flag_is_an_error(value: object) -> None:
    with pytest.raises(RunFailed, match="prompt p1 is"):
        combine([1.0], [1.0], meta={"safety": value})


def test_reward_is_the_whitened_plain_score() -> None:
    combined = combine([1.0, 2.0, 3.0, 9.0], [0.0, 0.0, 0.0, -4.0])
    assert combined.raw.tolist() == [1.0, 2.0, 3.0, -4.0]
    # mean 0.5, sample variance (0.25 + 2.25 + 6.25 + 20.25) / 3
    root = math.sqrt(29 / 3)
    assert combined.reward.tolist() == pytest.approx(
        [0.5 / root, 1.5 / root, 2.5 / root, -4.5 / root], rel=1e-8
    )
    assert combined.metrics == pytest.approx(
        {"helpful_mean": 3.75, "safety_mean": -1.0, "safety_share": 0.25, "raw_mean": 0.5}
    )


def test_without_whitening_reward_is_plain() -> None:
    combined = combine([1.0, 2.0], [0.0, -3.0], whiten=False)
    assert combined.reward.tolist() == combined.raw.tolist() == [1.0, -3.0]


def test_missing_scores_stay_nan_and_leave_the_others_alone() -> None:
    # The third has a low safety score and the second a missing one, which must not read as "safe
    # enough".
    whole = combine([1.0, 2.0], [0.0, 1.0])
    holed = combine([1.0, 7.0, NAN, 2.0], [0.0, NAN, -9.0, 1.0])
    for name in ("reward", "raw"):
        values = getattr(holed, name)
        assert values.isnan().tolist() == [False, True, True, False]
        assert torch.equal(values[[0, 3]], getattr(whole, name))
    assert holed.metrics == whole.metrics


def test_nothing_scored_at_all() -> None:
    combined = combine([NAN, NAN], [1.0, NAN])
    assert combined.reward.isnan().all() and combined.raw.isnan().all()


def test_equal_scores_whiten_to_zero() -> None:
    assert combine([2.0, 2.0, 2.0], [0.0, 0.0, 0.0]).reward.tolist() == [0.0, 0.0, 0.0]
    assert combine([2.0], [0.0]).reward.tolist() == [0.0]


@pytest.mark.parametrize("options", [{"threshold": -0.1}, {"threshold": 1.0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Llama2.Options(helpful="helpful", safety="safety", **options)


def test_parts_are_the_two_references() -> None:
    assert list(Llama2(Llama2.Options(helpful="a", safety="b")).parts()) == ["helpful", "safety"]
