"""What an online stage measures with other roles than the policy: the reference, and the start of
the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from watched import REWARD_MODEL, SFT, STILL, Ran, Watched, online

from alignkit import Batch, Group, Needs, RunFailed
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.training.online import RolloutTrainer
from benchmarks.papers import enumerable
from tests.rows import run, write_recipe

TEMPERATURE = 0.6
ROLLOUT = {"samples_per_prompt": 2, "max_new_tokens": 5, "temperature": TEMPERATURE}

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


def test_a_policy_that_does_not_begin_as_its_reference_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the adapter that both begin as, log-probabilities differ by rounding only."""
    measure = RolloutTrainer.reference_logprobs
    monkeypatch.setattr(
        RolloutTrainer, "reference_logprobs", lambda *of: [x + 0.2 for x in measure(*of)]
    )
    with pytest.raises(RunFailed, match="begin as the same adapter, but their KL is"):
        online(tmp_path, Watched(), iterations=1)


def test_the_kl_of_those_who_do_not_need_it_is_of_fewer_samples(tmp_path: Path) -> None:
    """Of one prompt in K, with all of its K samples: here of two in four."""
    keys: dict[str, Any] = {"from": "sft", "reference": "base", "learning_rate": STILL}
    keys |= {"plugin": "online_dpo", "prompts_per_iteration": 4, "iterations": 1}
    found = online(tmp_path, Watched(), before={"sft": SFT}, rollout=ROLLOUT, **keys)
    groups = found.rollouts()[0][::2]
    policy, reference = (
        torch.cat(found.run.models[role].logprobs(groups, temperature=TEMPERATURE)).double()
        for role in ("sft", "base")
    )
    gap = policy - reference
    kl = float(((-gap).exp() - 1 + gap).sum()) / 4
    assert len(groups) == 2 and kl > 0.1
    assert found.metrics[0]["kl"] == pytest.approx(kl, abs=1e-3)
    assert found.metrics[0]["engine_mismatch"] < 1e-4


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


ALIGN = """
align:
  algorithm: {ppo: {center_scores: false}}
  prompts: prompts.jsonl
  reward: first
  iterations: 1
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A recipe of two reward models, which are trained, and of a stage after them."""
    stages = {"first": REWARD_MODEL, "second": {**REWARD_MODEL, "epochs": 2}}
    recipe = write_recipe(tmp_path_factory.mktemp("models"), stages | yaml.safe_load(ALIGN))
    run(recipe, "--until", "second")
    return recipe


COMBINED = "stages.align.reward={weighted_sum: {rewards: {only: first}, weights: {only: 3.0}}}"


@pytest.mark.parametrize(
    ("override", "start", "with_head"),
    [
        ("stages.align.value_from=null", "first", True),
        ("stages.align.value_from=second", "second", False),
        (COMBINED, "first", False),
    ],
)
def test_values_start_from_the_reward_model_that_the_recipe_names(
    models: Path, override: str, start: str, with_head: bool
) -> None:
    """By default from the one that scores. A head of another one, or of one in a combination, has
    another scale, so they begin at zero, in its network.
    """
    made = Run(load_recipe(models, [override]), models.parent / "run")
    stage = made.stages["align"]
    assert isinstance(stage, TrainingStage)
    stage.folder.mkdir(exist_ok=True)
    trainer = RolloutTrainer(stage, stage.plugin(stage.spec.component))
    base = made.models.of("base")
    values, *known = (
        dict(trainer.model.parameters_of(role))
        for role in (trainer.value_role or "", base.role("first"), base.role("second"))
    )
    head, *_ = (each.pop("score.weight") for each in (values, *known))
    assert bool(head.any()) == with_head
    same = [all(map(torch.equal, values.values(), each.values())) for each in known]
    assert same == [start == "first", start == "second"]
    trainer.close()


def test_values_start_from_a_whole_reward_model_whose_base_has_a_head_with_a_bias(
    tmp_path: Path,
) -> None:
    """A reward model's folder has nothing of the language head, whatever it is made of."""
    problem = enumerable.make(tmp_path, "ab", 1)
    model = {"base": str(problem.base), "dtype": "float32", "lora": "none"}
    recipe = write_recipe(tmp_path, {"first": REWARD_MODEL} | yaml.safe_load(ALIGN), model)
    run(recipe, "stages.align.rollout={max_new_tokens: 1}")
