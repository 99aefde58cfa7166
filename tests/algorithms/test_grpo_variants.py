"""GRPO's later variants: CISPO, MaxRL and the entropy bonus, against formulas written out here."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import Outputs, RunFailed, Skip
from alignkit_plugins.algorithms.grpo import GRPO
from tests.by_hand import batch, close, double, gradient, loss_of, new, random_batch, reported


def test_cispo_by_hand() -> None:
    """MiniMax-M1, eq. (4): the capped ratio has no gradient, log pi has one for every token. (PPO's
    clipping drops gradients of the same batch.)
    """
    given, moved = random_batch(5)
    options = {"clip_range_high": 0.3, "kl_coefficient": 0.0}
    algorithm = new(GRPO, policy_loss="cispo", aggregation="token_mean", **options)
    found = loss_of(algorithm, given, logprobs=moved)
    weight = (moved - given.old_logprobs).exp().clamp(max=1.3).detach()
    wanted = -weight * given["advantages"][:, None] * given.mask / given.mask.sum()
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


def test_the_entropy_bonus_is_a_mean_over_tokens() -> None:
    """As in TRL: whatever the aggregation of the policy's loss."""
    options = {"aggregation": "constant_length", "max_tokens": 9}
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
