"""An engine's `importance`: what a sampler computed differently weighs the advantages, and so the
policy's loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_online import averaged, close, double, new, random_batch, reported
from torch import Tensor

from alignkit import Algorithm, Batch, Outputs, RecipeError
from alignkit.plugins import plugins
from alignkit.recipe.load import load_recipe
from alignkit_plugins.algorithms.distillation import Distillation
from alignkit_plugins.algorithms.grpo import GRPO, RLOO, ReinforcePP
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.vllm.importance import Importance

CAP = 1.2
CASES: list[tuple[type[Algorithm], dict[str, Any]]] = [
    (GRPO, {"kl_coefficient": 0.0, "aggregation": "token_mean"}),
    (GRPO, {"kl_coefficient": 0.0, "aggregation": "constant_length", "max_tokens": 9}),
    (
        GRPO,
        {
            "kl_coefficient": 0.0,
            "aggregation": "token_mean",
            "policy_loss": "cispo",
            "clip_range_high": 0.3,
        },
    ),
    (GRPO, {"kl_coefficient": 0.0, "ratio": "sequence"}),
    (ReinforcePP, {}),
    (PPO, {"value_coefficient": 0.0, "dual_clip": 1.1}),
    (RLOO, {}),
    (Distillation, {}),
]
IDS = ["grpo", "dr_grpo", "cispo", "gspo", "reinforce_pp", "ppo", "rloo", "distillation"]


def sampled(cls: type[Algorithm]) -> tuple[Batch, Tensor]:
    """A batch whose sampler was off by up to 0.5 nats per token, and the policy's
    log-probabilities.
    """
    given, moved = random_batch(4)
    noise = (
        torch.rand(moved.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        - 0.5
    )
    given.signals["sampler"] = given.old_logprobs + noise
    zero = torch.zeros_like(moved)
    given.old_values = zero
    if cls in (PPO, ReinforcePP, Distillation):
        given.signals |= {
            "advantages": given["advantages"][:, None].expand_as(moved),
            "returns": zero,
        }
    return given, moved


def corrected(algorithm: Algorithm, given: Batch, **importance: Any) -> Batch:
    """The batch with the weights that a stage gives it."""
    finest = algorithm.needs.advantages
    assert finest is not None
    old, sampler = given.old_logprobs, given["sampler"]
    advantages, _ = Importance(**importance).weights(
        given["advantages"], old, sampler, given.mask, finest
    )
    return given.replace(signals={**given.signals, "advantages": advantages})


def loss_of(algorithm: Algorithm, given: Batch, logprobs: Tensor) -> Tensor:
    zero = torch.zeros_like(logprobs)
    return averaged(algorithm, [(given, Outputs(logprobs=logprobs, values=zero, entropy=zero))])


def gradient(algorithm: Algorithm, given: Batch, at: Tensor) -> Tensor:
    logprobs = at.clone().requires_grad_(True)
    return torch.autograd.grad(loss_of(algorithm, given, logprobs), logprobs)[0]


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_each_token_is_weighted(cls: type[Algorithm], options: dict[str, Any]) -> None:
    """Its gradient is multiplied by min(pi_old / pi_sampler, cap); of RLOO and GSPO by that of its
    response.
    """
    given, moved = sampled(cls)
    algorithm = new(cls, **options)
    without, found = (
        gradient(algorithm, each, moved) for each in (given, corrected(algorithm, given, cap=CAP))
    )
    gap = (given.old_logprobs - given["sampler"]) * given.mask
    whole = cls is RLOO or options.get("ratio") == "sequence"
    weight = (gap.sum(1, keepdim=True) if whole else gap).exp()
    assert (weight > CAP).any() and (weight < 0.9).any() and without.abs().max() > 0
    close(found, without * weight.clamp(max=CAP))
    # Of whole responses, if the recipe says so.
    weight = gap.sum(1, keepdim=True).exp().clamp(max=CAP)
    close(
        gradient(algorithm, corrected(algorithm, given, cap=CAP, level="sequence"), moved),
        without * weight,
    )


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_what_the_mask_leaves_out_has_no_gradient(
    cls: type[Algorithm], options: dict[str, Any]
) -> None:
    given, moved = sampled(cls)
    algorithm = new(cls, **options)
    without = gradient(algorithm, given, moved)
    found = gradient(algorithm, corrected(algorithm, given, mask=[0.8, 1.25]), moved)
    gap = (given.old_logprobs - given["sampler"]) * given.mask
    whole = cls is RLOO or options.get("ratio") == "sequence"
    weight = (gap.sum(1, keepdim=True) if whole else gap).exp()
    inside = (weight >= 0.8) & (weight <= 1.25)
    assert inside.any() and (weight < 0.8).any() and (weight > 1.25).any()
    # Others keep their share: what is left out still counts in the denominators.
    close(found, without * weight * inside)


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_a_sampler_that_computes_as_training_does_changes_nothing(
    cls: type[Algorithm], options: dict[str, Any]
) -> None:
    given, moved = sampled(cls)
    given.signals["sampler"] = given.old_logprobs
    algorithm = new(cls, **options)
    same = corrected(algorithm, given, cap=CAP, mask=[0.5, 2.0])
    close(loss_of(algorithm, same, moved), loss_of(algorithm, given, moved))
    told, plain = (
        reported(algorithm, each, Outputs(logprobs=moved, values=moved)) for each in (same, given)
    )
    assert told == pytest.approx(plain)


def test_other_terms_of_the_loss_have_no_weight() -> None:
    """KL, entropy and values are about the policy, whoever sampled."""
    cases = (
        (GRPO, {"kl_coefficient": 0.3, "entropy_coefficient": 0.1}),
        (PPO, {"entropy_coefficient": 0.1}),
    )
    for cls, options in cases:
        given, moved = sampled(cls)
        algorithm = new(cls, **options)
        out = Outputs(logprobs=moved, values=moved / 10, entropy=moved.abs())
        plain, other = (
            algorithm.loss(each, out) for each in (given, corrected(algorithm, given, cap=CAP))
        )
        same = {
            name for name, term in plain.items() if torch.equal(term.values, other[name].values)
        }
        assert len(plain) == 3 and same == plain.keys() - {"policy_loss"}


# --- by hand


OLD = double([[-1.0, -1.0, -2.0, 0.0], [-1.0, -3.0, 0.0, 0.0]])
# Ratios of 1.5, 4 and 0.25, and a token of others; then 1 and 1.8, and padding that holds anything.
SAMPLER = OLD - double([[1.5, 4.0, 0.25, 1.0], [1.0, 1.8, 1.0, 1.0]]).log()
SAMPLER[0, 3], SAMPLER[1, 2] = -9.0, 50.0
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


@pytest.mark.parametrize(
    ("importance", "weights", "shares"),
    [
        ({"cap": 2.0}, [[1.5, 2, 0.25, 1], [1, 1.8, 1, 1]], {"importance_capped": 1 / 5}),
        ({"mask": [0.5, 2]}, [[1.5, 0, 0, 1], [1, 1.8, 1, 1]], {"importance_masked": 2 / 5}),
        (
            # The mask judges what was measured: a ratio of 4 is left out, and not capped at 1.6 and
            # then inside.
            {"cap": 1.6, "mask": [0.5, 2]},
            [[1.5, 0, 0, 1], [1, 1.6, 1, 1]],
            {"importance_masked": 2 / 5, "importance_capped": 1 / 5},
        ),
        ({"cap": 1.6, "level": "sequence"}, [[1.5] * 4, [1.6] * 4], {"importance_capped": 1 / 2}),
        (
            {"mask": [0.5, 1.6], "level": "sequence"},
            [[1.5] * 4, [0] * 4],
            {"importance_masked": 1 / 2},
        ),
    ],
    ids=["cap", "mask", "both", "capped responses", "masked responses"],
)
def test_weights_by_hand(
    importance: dict[str, Any], weights: Any, shares: dict[str, float]
) -> None:
    advantages = double([[2.0] * 4, [-3.0] * 4])
    for given in (advantages, advantages[:, 0]):  # of tokens, and one for each response
        found, told = Importance(**importance).weights(given, OLD, SAMPLER, MASK, "token")
        wanted = advantages * double(weights)
        close(found, wanted if found.dim() == 2 else wanted[:, 0])
        assert told == pytest.approx(shares)
    # An algorithm of whole responses has no other weights.
    of_responses, _ = Importance(**importance).weights(
        advantages[:, 0], OLD, SAMPLER, MASK, "sequence"
    )
    assert of_responses.shape == (2,)


def test_what_may_not_be_written() -> None:
    for keys, message in (
        ({}, "a weight without a limit can be arbitrarily large: set cap, mask or both"),
        ({"level": "token"}, "set cap, mask or both"),
        ({"mask": [2, 0.5]}, "must go from 0 or more up to 1, and on to 1 or more"),
        ({"mask": [1.5, 2]}, "must go from 0 or more up to 1"),
        ({"mask": [0.5]}, "at least 2 items"),
        ({"cap": 0.5}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            Importance(**keys)


# --- which algorithms


def checked(folder: Path, algorithm: Any, importance: dict[str, Any]) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    name = next(iter(algorithm)) if isinstance(algorithm, dict) else algorithm
    needs_reward = name != "distillation"
    stage = {
        "algorithm": algorithm,
        "prompts": "rows.jsonl",
        "rollout": {"samples_per_prompt": 4},
        "engine": {"vllm": {"importance": importance}},
        **(
            {"reward": {"length": {"unit": "characters"}}}
            if needs_reward
            else {"reference": "base", "from": "sft"}
        ),
    }
    stages = {"sft": {"algorithm": "sft", "data": "rows.jsonl"}, "align": stage}
    (folder / "recipe.yaml").write_text(json.dumps({"model": {"base": "tiny"}, "stages": stages}))
    load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("name", ["online_dpo", "rejection_sampling", "rest", "expert_iteration"])
def test_what_learns_from_no_advantages_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} does not use the engine's 'importance'"):
        checked(tmp_path, name, {"cap": 2})


@pytest.mark.parametrize("algorithm", ["rloo", "ppo", "grpo", "reinforce_pp", "distillation"])
def test_what_learns_from_advantages_is_weighted(tmp_path: Path, algorithm: str) -> None:
    checked(tmp_path, algorithm, {"mask": [0.5, 2], "level": "sequence"})


def test_every_policy_gradient_declares_its_advantages() -> None:
    """Whoever returns a signal of this name, so that a new one is not forgotten."""
    classes = {entry.name: entry.implementation for entry in plugins().registrations("algorithm")}
    found = {
        name: new(cls).needs.advantages
        for name, cls in classes.items()
        if cls.signal is not Algorithm.signal
    }
    tokens = dict.fromkeys(("distillation", "grpo", "ppo", "reinforce_pp"), "token")
    assert found == {**tokens, "rloo": "sequence"}
