"""An engine's `importance`: what a sampler computed differently weighs the advantages, and so the
policy's loss.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit import Algorithm, Group, Outputs, RecipeError, Response
from alignkit.host.plugins import plugins
from alignkit.recipe.load import load_recipe
from alignkit_plugins.algorithms.distillation import Distillation
from alignkit_plugins.algorithms.grpo import GRPO, RLOO, ReinforcePP
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.vllm.engine import Importance
from tests.by_hand import close, double, new, random_batch
from tests.rows import write_recipe

CAP = 1.2
CASES: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "grpo": (GRPO, {"kl_coefficient": 0.3, "entropy_coefficient": 0.1}),
    "cispo": (GRPO, {"policy_loss": "cispo", "clip_range_high": 0.3}),
    "gspo": (GRPO, {"ratio": "sequence"}),
    "reinforce_pp": (ReinforcePP, {}),
    "ppo": (PPO, {"entropy_coefficient": 0.1, "dual_clip": 1.1}),
    "rloo": (RLOO, {}),
    "distillation": (Distillation, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_token_of_the_policy_loss_is_weighted(name: str) -> None:
    """Its gradient is multiplied by min(pi_old / pi_sampler, cap); of RLOO and GSPO by that of its
    response. KL, entropy and values are about the policy, whoever sampled.
    """
    cls, options = CASES[name]
    algorithm = new(cls, **options)
    given, moved = random_batch(4)
    # A sampler that was off by up to 0.5 nats per token
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(moved.shape, generator=draw, dtype=torch.float64) - 0.5
    sampler = (given.old_logprobs + noise).float()  # as samplers tell
    given.old_values = torch.zeros_like(moved)
    if cls in (PPO, ReinforcePP, Distillation):
        advantages = given["advantages"][:, None].expand_as(moved)
        given.signals |= {"advantages": advantages, "returns": given.old_values}
    responses = tuple(Response(text="", logprobs=row) for row in sampler.tolist())
    rollouts = given.replace(groups=[Group((), responses)])
    finest = algorithm.needs.advantages
    signals, _ = Importance(cap=CAP).weighted(given.signals, rollouts, given.old_logprobs, finest)
    out = Outputs(logprobs=moved, values=moved / 10, entropy=moved.abs())
    plain, found = (algorithm.loss(each, out) for each in (given, given.replace(signals=signals)))
    (changed,) = [key for key in plain if not torch.equal(plain[key].values, found[key].values)]
    assert changed == "policy_loss" and len(plain) == {"grpo": 3, "ppo": 3}.get(name, len(plain))
    gap = (given.old_logprobs - sampler) * given.mask
    whole = name in ("rloo", "gspo")
    weight = (gap.sum(1, keepdim=True) if whole else gap).exp()
    assert (weight > CAP).any() and (weight < 0.9).any()
    without, gradient = (
        torch.autograd.grad(loss["policy_loss"].values.sum(), moved, retain_graph=True)[0]
        for loss in (plain, found)
    )
    assert without.any()
    close(gradient, without * weight.clamp(max=CAP))


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


# --- which algorithms


RECIPE = """
sft: {algorithm: sft, data: demos.jsonl}
align:
  algorithm: ppo
  prompts: prompts.jsonl
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 4}
  engine: {vllm: {importance: {cap: 2}}}
"""


def test_only_what_learns_from_advantages_is_weighted(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    load_recipe(recipe)
    with pytest.raises(RecipeError, match="rest does not use the engine's 'importance'"):
        load_recipe(recipe, ["stages.align.algorithm=rest"])
    with pytest.raises(RecipeError, match="greater than or equal to 1"):
        load_recipe(recipe, ["stages.align.engine.vllm.importance.cap=0.5"])


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
