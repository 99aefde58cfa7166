"""GRPO's later variants: CISPO, MaxRL and the entropy bonus, against formulas written out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import Outputs, RunFailed, Skip
from alignkit.testing import check_algorithm
from alignkit.testing.examples import example_groups
from alignkit.testing.tiny import tiny_model
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.algorithms.grpo import GRPO
from tests.by_hand import batch, close, double, gradient, loss_of, new, random_batch, reported

CISPO: dict[str, Any] = {"policy_loss": "cispo", "clip_range_high": 0.3}


@pytest.mark.parametrize(
    "options",
    [
        {**CISPO, "aggregation": "token_mean"},
        {"scale_by_mean": True, "kl_coefficient": 0.0},
        {"entropy_coefficient": 0.1, "aggregation": "token_mean"},
    ],
    ids=["cispo", "maxrl", "entropy"],
)
def test_they_conform(options: dict[str, Any]) -> None:
    """With rewards of 0 and 1."""
    groups = []
    for group in example_groups(3, Encoder(tiny_model().tokenizer)):
        rewards = [float(k == 1) for k in range(len(group.responses))]
        responses = [
            replace(response, scores={"reward": reward})
            for response, reward in zip(group.responses, rewards, strict=True)
        ]
        groups.append(replace(group, responses=tuple(responses)))
    check_algorithm(GRPO, options, groups=groups)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"policy_loss": "cispo"}, "clip_range_high"),
        ({"policy_loss": "cispo", "clip_range_high": 4, "clip_range": 0.2}, "no lower bound"),
        ({"policy_loss": "cispo", "clip_range_high": 4, "ratio": "sequence"}, "ratio: token"),
        ({"scale_by_mean": True, "scale_by_std": True}, "by the deviation or by the mean"),
    ],
)
def test_what_may_not_be_combined(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GRPO.Options(**options)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_cispo_by_hand(aggregation: str) -> None:
    """MiniMax-M1, eq. (4): the capped ratio has no gradient, log pi has one for every token. (PPO's
    clipping drops gradients of the same batch.)
    """
    given, moved = random_batch(5)
    algorithm = new(GRPO, **CISPO, aggregation=aggregation, kl_coefficient=0.0)
    found = loss_of(algorithm, given, logprobs=moved)
    weight = (moved - given.old_logprobs).exp().clamp(max=1.3).detach()
    mask = given.mask.double()
    if aggregation == "token_mean":
        share = mask / mask.sum()
    else:
        share = mask / mask.sum(1, keepdim=True) / len(mask)
    wanted = -weight * given["advantages"][:, None] * share
    close(found, (wanted * moved).sum())
    close(gradient(found, moved), wanted)
    capped = float((weight == 1.3)[given.mask].double().mean())
    assert capped > 0.05 and (wanted[given.mask] != 0).all()
    assert reported(algorithm, given, Outputs(logprobs=moved))["clip_fraction"] == pytest.approx(
        capped
    )


def rewarded(*rewards: float, group: list[int] | None = None) -> Any:
    zeros = double([[0.0]] * len(rewards))
    given = batch(zeros + 1, group=group or [0] * len(rewards), rewards=double(rewards))
    return given.replace(old_logprobs=zeros, reference_logprobs=zeros)


def test_maxrl_divides_by_the_mean() -> None:
    algorithm = new(GRPO, scale_by_mean=True, kl_coefficient=0.0)
    given = rewarded(1, 0, 0, 0, 1, 1, 0, 0, 0.5, 1, group=[0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    wanted = [3.0, -1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1 / 3, 1 / 3]
    close(algorithm.signal(given)["advantages"], wanted)
    with pytest.raises(RunFailed, match=r"0 or more, but one is -0\.5"):
        algorithm.signal(rewarded(1.0, -0.5))


@pytest.mark.parametrize(
    "options",
    [{}, {"aggregation": "token_mean"}, {"aggregation": "constant_length", "max_tokens": 9}],
)
def test_the_entropy_bonus_is_a_mean_over_tokens(options: dict[str, Any]) -> None:
    """As in TRL: whatever the aggregation of the policy's loss."""
    given, moved = random_batch(1)
    entropy = moved.detach().neg().requires_grad_()
    plain, found = (
        loss_of(new(GRPO, **options, **more), given, logprobs=moved, entropy=entropy)
        for more in ({}, {"entropy_coefficient": 0.3})
    )
    close(found - plain, -0.3 * entropy[given.mask].mean())
    close(gradient(found, entropy), -0.3 * given.mask.double() / given.mask.sum())


def test_equal_rewards_are_learned_from_for_their_entropy() -> None:
    equal, bonus = rewarded(1.0, 1.0), new(GRPO, entropy_coefficient=0.1)
    assert isinstance(new(GRPO).signal(equal), Skip)
    close(bonus.signal(equal)["advantages"], [0.0, 0.0])
    assert (new(GRPO).needs.entropy, bonus.needs.entropy) == (False, True)
