"""GRPO's later variants: CISPO, MaxRL and the entropy bonus, against formulas written out here and
against TRL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_online import (
    advantages_of,
    averaged,
    close,
    new,
    random_batch,
    reported,
    rollouts,
    trl_inputs,
    trl_trainer,
)

from alignkit import Group, Outputs, RunFailed, Skip
from alignkit.testing import check_algorithm
from alignkit.testing.examples import example_groups
from alignkit.testing.tiny import tiny_model
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.algorithms.grpo import GRPO

CISPO: dict[str, Any] = {
    "policy_loss": "cispo",
    "clip_range_high": 0.3,
    "aggregation": "token_mean",
}


@pytest.mark.parametrize(
    "options",
    [
        CISPO,
        {"scale_by_mean": True, "kl_coefficient": 0.0},
        {"entropy_coefficient": 0.1, "aggregation": "token_mean"},
    ],
    ids=["cispo", "maxrl", "entropy"],
)
def test_they_conform(options: dict[str, Any]) -> None:
    check_algorithm(GRPO, options, groups=right_or_wrong())


def right_or_wrong() -> list[Group]:
    """The kit's rollouts with rewards of 0 and 1."""
    groups = example_groups(3, Encoder(tiny_model().tokenizer))
    return [
        replace(
            group,
            responses=tuple(
                replace(r, scores={"reward": float(k == 1)}) for k, r in enumerate(group.responses)
            ),
        )
        for group in groups
    ]


# --- CISPO


def test_cispo_by_hand() -> None:
    """MiniMax-M1, eq. (4): the capped ratio has no gradient, log pi has one for every token."""
    given, moved = random_batch(5)
    for aggregation in ("token_mean", "sequence_mean"):
        logprobs = moved.clone().requires_grad_(True)
        algorithm = new(GRPO, **{**CISPO, "aggregation": aggregation, "kl_coefficient": 0.0})
        found = averaged(algorithm, [(given, Outputs(logprobs=logprobs))])
        weight = (moved - given.old_logprobs).exp().clamp(max=1.3)
        gradient = -weight * given["advantages"][:, None] * given.mask
        mask = given.mask.double()
        share = (
            mask / mask.sum()
            if aggregation == "token_mean"
            else mask / mask.sum(1, keepdim=True) / len(mask)
        )
        close(found, (gradient * moved * share).sum())
        close(torch.autograd.grad(found, logprobs)[0], gradient * share)
        # PPO's clipping drops gradients of the same batch.
        assert (gradient[given.mask] != 0).all() and float(
            (weight == 1.3)[given.mask].double().mean()
        ) > 0.05
    told = reported(new(GRPO, **CISPO), given, Outputs(logprobs=moved))["clip_fraction"]
    assert told == pytest.approx(float((weight == 1.3)[given.mask].double().mean()))


def test_trl_has_the_same_cispo() -> None:
    """TRL's epsilon_high is the cap itself; ours is its distance from 1, as in the paper."""
    from trl import GRPOTrainer

    given, moved = random_batch(6)
    algorithm = new(GRPO, **{**CISPO, "kl_coefficient": 0.1})
    ours, theirs = moved.clone().requires_grad_(True), moved.clone().requires_grad_(True)
    settings = {
        "loss_type": "cispo",
        "importance_sampling_level": "token",
        "max_completion_length": None,
    }
    trainer = trl_trainer(theirs, **settings, beta=0.1, epsilon_low=0.2, epsilon_high=1.3)
    wanted = GRPOTrainer._compute_loss(trainer, None, trl_inputs(given))
    found = averaged(algorithm, [(given, Outputs(logprobs=ours))])
    close(found, wanted)
    close(torch.autograd.grad(found, ours)[0], torch.autograd.grad(wanted, theirs)[0])


# --- MaxRL


def test_maxrl_divides_by_the_mean() -> None:
    rewards, group = (
        [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0],
        [0, 0, 0, 0, 1, 1, 2, 2, 3, 3],
    )
    algorithm = new(GRPO, scale_by_mean=True, kl_coefficient=0.0)
    found = advantages_of(algorithm, rollouts(rewards, group))
    close(found, [3.0, -1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1 / 3, 1 / 3])


def test_maxrl_needs_rewards_that_are_not_negative() -> None:
    with pytest.raises(
        RunFailed, match=r"'scale_by_mean' needs rewards of 0 or more, but one is -0\.5"
    ):
        new(GRPO, scale_by_mean=True).signal(rollouts([1.0, -0.5], [0, 0]))


# --- the entropy bonus


def test_the_entropy_bonus_is_a_mean_over_tokens() -> None:
    """As in TRL: whatever the aggregation of the policy's loss."""
    given, moved = random_batch(1)
    entropy = moved.neg().requires_grad_(True)
    for options in (
        {},
        {"aggregation": "token_mean"},
        {"aggregation": "constant_length", "max_tokens": 9},
    ):
        out = Outputs(logprobs=moved, entropy=entropy)
        plain = averaged(new(GRPO, **options), [(given, out)])
        found = averaged(new(GRPO, entropy_coefficient=0.3, **options), [(given, out)])
        close(found - plain, -0.3 * entropy[given.mask].mean())
        close(torch.autograd.grad(found, entropy)[0], -0.3 * given.mask.double() / given.mask.sum())


def test_entropy_is_computed_only_for_a_bonus() -> None:
    assert (
        new(GRPO).needs.entropy is False
        and new(GRPO, entropy_coefficient=0.1).needs.entropy is True
    )


def test_equal_rewards_are_learned_from_for_their_entropy() -> None:
    equal = rollouts([1.0, 1.0], [0, 0])
    assert isinstance(new(GRPO).signal(equal), Skip)
    close(advantages_of(new(GRPO, entropy_coefficient=0.1), equal), [0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy_loss": "cispo"}, "set clip_range_high, and not clip_range"),
        ({"policy_loss": "cispo", "clip_range_high": 4, "clip_range": 0.2}, "has no lower bound"),
        (
            {"policy_loss": "cispo", "clip_range_high": 4, "ratio": "sequence"},
            "requires 'ratio: token'",
        ),
        ({"scale_by_mean": True, "scale_by_std": True}, "by the deviation or by the mean"),
    ],
)
def test_what_may_not_be_combined(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GRPO.Options(**options)
