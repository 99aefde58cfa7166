"""A reward at equal length: what length explains within prompts is gone, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import DataError, Group, Message, Response
from alignkit import functional as F
from alignkit_plugins.rewards.combinations import EqualLength


def group(lengths: Sequence[int], name: str = "") -> Group:
    responses = [Response("x", tokens=(1,) * n, written=(True,) * n) for n in lengths]
    return Group((Message(role="user", content=name),), tuple(responses), id=name)


def corrected(groups: Sequence[Group], scores: Sequence[float], **options: Any) -> list[float]:
    thing = EqualLength(EqualLength.Options(reward="liked", **options))
    combined = thing.combine(groups, {"raw": torch.tensor(scores, dtype=torch.float64)})
    assert torch.equal(combined.reward.nan_to_num(), combined.raw.nan_to_num())
    values: list[float] = combined.raw.tolist()
    return values


def test_a_reward_for_length_alone_becomes_constant() -> None:
    groups = [group([3, 9, 12]), group([20, 40])]
    assert corrected(groups, [0.1 * n for n in (3, 9, 12, 20, 40)]) == pytest.approx(
        [0.1 * 84 / 5] * 5
    )


def test_what_length_does_not_explain_stays() -> None:
    """As with ordinary least squares with an intercept per prompt, and the length of a prompt's
    answers left alone.
    """
    random = np.random.default_rng(0)
    lengths, index = random.integers(1, 60, 24), np.repeat(np.arange(4), 6)
    scores = 0.05 * lengths + 3.0 * index + random.normal(size=24)  # prompts with higher scores
    dummies = np.eye(4)[index]
    slope = np.linalg.lstsq(np.column_stack([lengths, dummies]), scores, rcond=None)[0][0]
    found = corrected([group(lengths[index == n].tolist()) for n in range(4)], scores.tolist())
    assert found == pytest.approx(scores - slope * (lengths - lengths.mean()))
    assert np.mean(found) == pytest.approx(scores.mean())


def test_prompts_with_long_answers_say_nothing_about_length() -> None:
    groups = [group([10, 10]), group([50, 50])]
    assert corrected(groups, [0.0, 1.0, 5.0, 7.0]) == [0.0, 1.0, 5.0, 7.0]
    assert corrected([group([10]), group([50])], [0.0, 5.0]) == [0.0, 5.0]


def test_an_answer_without_a_score_has_no_part_in_it() -> None:
    groups = [group([2, 4, 400]), group([10, 14])]
    found = corrected(groups, [1.0, 2.0, math.nan, 7.0, 9.0])
    assert math.isnan(found[2])
    assert found[:2] + found[3:] == pytest.approx(
        corrected([group([2, 4]), group([10, 14])], [1.0, 2.0, 7.0, 9.0])
    )


def test_no_scores_at_all() -> None:
    assert all(map(math.isnan, corrected([group([2, 4])], [math.nan, math.nan])))
    assert corrected([], []) == []


def test_only_tokens_that_the_policy_wrote_count() -> None:
    """Not those that a tool returned."""
    tool = Response("x", tokens=(1,) * 30, written=(True,) * 4 + (False,) * 26)
    mixed = Group((Message(role="user", content=""),), (tool, group([8]).responses[0]))
    assert corrected([mixed], [1.0, 3.0]) == pytest.approx(corrected([group([4, 8])], [1.0, 3.0]))


def test_answers_without_tokens_are_refused() -> None:
    """Their lengths are not 0."""
    with pytest.raises(DataError, match="was not sampled in this run"):
        corrected(
            [Group((Message(role="user", content=""),), (Response("x"), Response("y")))], [1.0, 2.0]
        )


def test_unit_variance_makes_two_rewards_count_alike() -> None:
    """Scores are divided, not shifted: `llama2` compares them with a threshold."""
    groups = [group([10, 10, 10]), group([30, 30]), group([7])]
    scores = [0.1, 0.3, 0.5, 2.0, 2.2, -4.0]
    found = corrected(groups, scores, unit_variance=True)
    pooled = math.sqrt((0.2**2 + 0.2**2 + 0.1**2 + 0.1**2) / 3)  # three values above two means
    assert found == pytest.approx([score / pooled for score in scores])
    assert corrected(
        groups, [100 * score for score in scores], unit_variance=True
    ) == pytest.approx(found)
    assert corrected([group([5, 5])], [0.25, 0.25], unit_variance=True) == [0.25, 0.25]


def test_slope_and_deviation_need_variation() -> None:
    same, group_of = torch.ones(3), torch.zeros(3)
    assert float(F.slope_within_groups(torch.tensor([1.0, 2.0, 4.0]), same, group_of)) == 0.0
    assert float(F.std_within_groups(same, group_of)) == 0.0
    assert float(F.std_within_groups(torch.tensor([1.0, 2.0, 4.0]), torch.arange(3))) == 0.0
