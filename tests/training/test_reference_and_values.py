"""What an online stage metrics with other roles than the policy: the reference, and the start of
the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from watched import SFT, STILL, Ran, Watched, online, reward_model

from alignkit import Batch, Group, Loss, Needs, Outputs, hookimpl, per_token
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins

TEMPERATURE = 0.6
ROLLOUT = {"samples_per_prompt": 2, "max_new_tokens": 5, "temperature": TEMPERATURE}
MODELS = {"first": reward_model(1), "second": reward_model(2)}


pytestmark = pytest.mark.usefixtures("one_thread")


def assert_measured_by(found: Ran, reference: str, batch: Batch) -> None:
    """The batch's reference log-probabilities are those of this role at the sampling
    temperature.
    """
    wanted = found.run.models[reference].logprobs(batch.groups, temperature=TEMPERATURE)
    for row, mask, values in zip(batch.reference_logprobs, batch.mask, wanted, strict=True):
        torch.testing.assert_close(row[mask], values, atol=1e-4, rtol=0)


@pytest.mark.silent_bug(
    "models: reference",
    "With an adapter, the reference is the base and not the policy where training began.",
    "It is the starting policy, or the one that the recipe names.",
    "huggingface/trl#1340",
)
@pytest.mark.parametrize(("keys", "reference"), [({}, "sft"), ({"reference": "base"}, "base")])
def test_the_reference_is_the_one_that_the_recipe_names(
    tmp_path: Path, keys: dict[str, Any], reference: str
) -> None:
    """By default it is the starting weights."""
    watched = Watched(Needs(reference_logprobs=True))
    keys = {"from": "sft", "plugin": "online_dpo", **keys}
    found = online(tmp_path, watched, before={"sft": SFT}, rollout=ROLLOUT, **keys)
    assert watched.measured is not None
    assert_measured_by(found, reference, watched.measured)
    assert (abs(found.metrics[0]["kl"]) < 1e-4) == (reference == "sft")


@pytest.mark.parametrize(("needs", "measured"), [(Needs(), 2), (Needs(reference_logprobs=True), 4)])
def test_the_kl_of_those_who_do_not_need_it_is_of_fewer_samples(
    tmp_path: Path, needs: Needs, measured: int
) -> None:
    """Of one prompt in K, with all of its K samples: here of two in four."""
    keys: dict[str, Any] = {
        "plugin": "online_dpo",
        "from": "sft",
        "reference": "base",
        "prompts_per_iteration": 4,
        "iterations": 1,
    }
    before = {"sft": SFT}
    found = online(
        tmp_path, Watched(needs), before=before, rollout=ROLLOUT, learning_rate=STILL, **keys
    )
    groups = found.rollouts()[0][:: 4 // measured]
    policy, reference = (
        found.run.models[role].logprobs(groups, temperature=TEMPERATURE) for role in ("sft", "base")
    )
    gaps = [ours.double() - theirs.double() for ours, theirs in zip(policy, reference, strict=True)]
    kl = [float(((-gap).exp() - 1 + gap).sum()) for gap in gaps]
    assert len(groups) == measured and len(kl) == 2 * measured
    assert found.metrics[0]["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-3)
    assert found.metrics[0]["kl"] > 0.1
    assert found.metrics[0]["sampler_gap"] < 1e-4


def test_groups_that_select_makes_are_measured_by_the_reference(tmp_path: Path) -> None:
    """After the policy has moved, and at the temperature of the samples, as all rollouts."""

    def first_sample(groups: Sequence[Group]) -> list[Group]:
        return [replace(group, responses=group.responses[:1]) for group in groups]

    watched = Watched(Needs(reference_logprobs=True, old_logprobs=True), first_sample)
    found = online(tmp_path, watched, rollout=ROLLOUT, learning_rate=0.05, plugin="online_dpo")
    last, logprobs = watched.seen[-1].learned[0], watched.seen[-1].logprobs[0]
    assert len(last.mask) == 2
    assert_measured_by(found, "base", last)
    # Before the first step of the iteration the policy is still the one that sampled.
    torch.testing.assert_close(last.old_logprobs, logprobs, atol=1e-4, rtol=0)
    assert float((last.old_logprobs - last.reference_logprobs).abs().max()) > 0.1


# The start of the values


class Roles:
    """An observer: which reward model's network another role with a head has before the first
    step.
    """

    def __init__(self) -> None:
        self.copied: list[str] = []

    @hookimpl
    def rollouts_scored(
        self, run: Any, stage: str, iteration: int, groups: Sequence[Group]
    ) -> None:
        done = [name for name in MODELS if (run.folder / name / "adapter").exists()]
        model = run.models.of("base").model
        networks = {name: network(model, run.models.of("base").role(name)) for name in done}
        others = [
            name
            for name, role in model.roles.items()
            if role.head is not None and name not in networks
        ]
        for role in others if iteration == 1 else ():
            own = network(model, role)
            self.copied += [
                name for name, known in networks.items() if all(map(torch.equal, own, known))
            ]


def network(model: SharedModel, role: str) -> list[Tensor]:
    """A role's weights without its head."""
    return [weight for name, weight in model.parameters_of(role).items() if name != "score.weight"]


def values_of(folder: Path, **keys: Any) -> tuple[Tensor, list[str]]:
    """The values before the first step, and the reward model whose network they come from."""
    watched, roles = Watched(Needs(values=True), loss_of=with_values), Roles()
    plugins().manager.register(roles)
    try:
        online(folder, watched, before=MODELS, plugin="ppo", iterations=1, **keys)
    finally:
        plugins().manager.unregister(roles)
    assert watched.measured is not None
    return watched.measured.old_values[watched.measured.mask], roles.copied


def with_values(step: int, out: Outputs) -> Loss:
    return Loss(nll=per_token(-out.logprobs), values=per_token(out.values**2))


@pytest.mark.parametrize(("keys", "start"), [({}, "first"), ({"value_from": "second"}, "second")])
def test_values_start_from_the_reward_model_that_the_recipe_names(
    tmp_path: Path, keys: dict[str, Any], start: str
) -> None:
    """By default from the one that scores. Another one's head has another scale, so it is not
    used.
    """
    values, copied = values_of(tmp_path, reward="first", **keys)
    assert copied == [start]
    assert bool(values.any()) == (start == "first")


def test_values_of_a_combination_start_from_zero(tmp_path: Path) -> None:
    """In the network of its reward model."""
    reward = {"weighted_sum": {"rewards": {"only": "first"}, "weights": {"only": 3.0}}}
    values, copied = values_of(tmp_path, reward=reward)
    assert copied == ["first"] and not bool(values.any())
