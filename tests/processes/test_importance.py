"""An engine's `importance`: what a sampler computed differently weighs the advantages, and so the
policy's loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from alignkit import Algorithm, Batch, Group, Outputs, RecipeError, Response
from alignkit.plugins import plugins
from alignkit.recipe.load import load_recipe
from alignkit_plugins.algorithms.distillation import Distillation
from alignkit_plugins.algorithms.grpo import GRPO, RLOO, ReinforcePP
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.vllm.engine import Importance
from tests.by_hand import averaged, close, double, new, random_batch, reported

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
    given.signals["sampler"] = (given.old_logprobs + noise).float().double()  # as samplers tell
    zero = torch.zeros_like(moved)
    given.old_values = zero
    if cls in (PPO, ReinforcePP, Distillation):
        given.signals |= {
            "advantages": given["advantages"][:, None].expand_as(moved),
            "returns": zero,
        }
    return given, moved


def corrected(algorithm: Algorithm, given: Batch) -> Batch:
    """The batch with the weights that a stage gives it."""
    finest = algorithm.needs.advantages
    assert finest is not None
    sampler = [Response(text="", logprobs=row) for row in given["sampler"].tolist()]
    rollouts = given.replace(groups=[Group((), tuple(sampler))])
    signals, _ = Importance(cap=CAP).weighted(given.signals, rollouts, given.old_logprobs, finest)
    return given.replace(signals=signals)


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
        gradient(algorithm, each, moved) for each in (given, corrected(algorithm, given))
    )
    gap = (given.old_logprobs - given["sampler"]) * given.mask
    whole = cls is RLOO or options.get("ratio") == "sequence"
    weight = (gap.sum(1, keepdim=True) if whole else gap).exp()
    assert (weight > CAP).any() and (weight < 0.9).any() and without.abs().max() > 0
    close(found, without * weight.clamp(max=CAP))


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_a_sampler_that_computes_as_training_does_changes_nothing(
    cls: type[Algorithm], options: dict[str, Any]
) -> None:
    given, moved = sampled(cls)
    given.signals["sampler"] = given.old_logprobs
    algorithm = new(cls, **options)
    same = corrected(algorithm, given)
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
        plain, other = (algorithm.loss(each, out) for each in (given, corrected(algorithm, given)))
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


def test_weights_by_hand() -> None:
    responses = tuple(Response(text="", logprobs=row) for row in SAMPLER.tolist())
    rollouts = SimpleNamespace(groups=[Group((), responses)], mask=MASK)
    advantages = double([[2.0] * 4, [-3.0] * 4])
    for given in (advantages, advantages[:, 0]):  # of tokens, and one for each response
        found, told = Importance(cap=2.0).weighted({"advantages": given}, rollouts, OLD, "token")
        wanted = advantages * double([[1.5, 2, 0.25, 1], [1, 1.8, 1, 1]])
        torch.testing.assert_close(found["advantages"], wanted, atol=1e-6, rtol=1e-6)
        assert told == pytest.approx({"importance_capped": 1 / 5})
    # An algorithm of whole responses: a ratio of 1.5 and one of 1.8.
    signals = {"advantages": advantages[:, 0]}
    found, told = Importance(cap=1.6).weighted(signals, rollouts, OLD, "sequence")
    wanted = double([2.0 * 1.5, -3.0 * 1.6])
    torch.testing.assert_close(found["advantages"], wanted, atol=1e-6, rtol=1e-6)
    assert told == {"importance_capped": 1 / 2}


def test_what_may_not_be_written() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Importance(cap=0.5)


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
    checked(tmp_path, algorithm, {"cap": 2})


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
