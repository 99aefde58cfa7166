"""Truncated importance sampling: what a sampler computed differently weighs the loss, up to a cap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_online import averaged, close, new, random_batch

from alignkit import Algorithm, Batch, Outputs
from alignkit.testing import check_algorithm
from alignkit_plugins.algorithms.grpo import GRPO
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.algorithms.reinforce_pp import ReinforcePP
from alignkit_plugins.algorithms.rloo import RLOO

CAP = 1.2
CASES: list[tuple[type[Algorithm], dict[str, Any]]] = [
    (GRPO, {"kl_coefficient": 0.0, "aggregation": "token_mean"}),
    (GRPO, {"kl_coefficient": 0.0, "aggregation": "token_mean", "policy_loss": "cispo", "clip_range_high": 0.3}),
    (ReinforcePP, {}),
    (PPO, {"value_coefficient": 0.0}),
    (RLOO, {}),
]
IDS = ["grpo", "cispo", "reinforce_pp", "ppo", "rloo"]


def sampled(cls: type[Algorithm]) -> tuple[Batch, torch.Tensor]:
    """A batch whose sampler was off by up to 0.5 nats per token, and the policy's log-probabilities."""
    given, moved = random_batch(4)
    noise = torch.rand(moved.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    given.sampler_logprobs = given.old_logprobs + noise
    if cls in (PPO, ReinforcePP):
        zero = torch.zeros_like(moved)
        given.signals = {"advantages": given["advantages"][:, None].expand_as(moved), "returns": zero}
        given.old_values = zero
    return given, moved


def loss_of(cls: type[Algorithm], options: dict[str, Any], given: Batch, logprobs: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(logprobs)
    return averaged(new(cls, **options), [(given, Outputs(logprobs=logprobs, values=zero, entropy=zero))])


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_each_token_is_weighed(cls: type[Algorithm], options: dict[str, Any]) -> None:
    """Every token's gradient is multiplied by min(pi_old / pi_sampler, cap); RLOO's by that of its response."""
    given, moved = sampled(cls)
    plain, weighed = moved.clone().requires_grad_(True), moved.clone().requires_grad_(True)
    without = torch.autograd.grad(loss_of(cls, options, given, plain), plain)[0]
    found = torch.autograd.grad(loss_of(cls, {**options, "importance_cap": CAP}, given, weighed), weighed)[0]
    gap = (given.old_logprobs - given.sampler_logprobs) * given.mask
    weight = (gap.sum(1, keepdim=True) if cls is RLOO else gap).exp()
    assert (weight > CAP).any() and (weight < 0.9).any() and without.abs().max() > 0
    close(found, without * weight.clamp(max=CAP))


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_nothing_changes_without_the_option(cls: type[Algorithm], options: dict[str, Any]) -> None:
    assert not new(cls, **options).needs.sampler_logprobs
    assert new(cls, **options, importance_cap=2.0).needs.sampler_logprobs
    given, moved = sampled(cls)
    given.sampler_logprobs = given.old_logprobs  # a sampler that computes as training does
    close(loss_of(cls, {**options, "importance_cap": CAP}, given, moved), loss_of(cls, options, given, moved))


@pytest.mark.parametrize("cls", [GRPO, ReinforcePP, PPO, RLOO], ids=lambda cls: cls.__name__)
def test_they_conform(cls: type[Algorithm]) -> None:
    check_algorithm(cls, {"importance_cap": 2.0})


def test_whole_responses_of_gspo_have_no_weight_of_a_token() -> None:
    with pytest.raises(ValidationError, match="importance_cap weighs tokens and requires 'ratio: token'"):
        GRPO.Options(ratio="sequence", importance_cap=2.0)
