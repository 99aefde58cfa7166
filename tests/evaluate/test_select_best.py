"""The step that picks a policy by its mean reward: against scripted models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scipy import stats

from alignkit import Artifact, RunFailed
from alignkit.recipe.schema import RewardSpec
from alignkit_plugins.evaluate.select_best import SelectBest
from tests.evaluate.scripted import Scripted, context, prompts, row, said, triple

SCORES = {"sft@1": [1.0, 2.0, 3.0], "sft@2": [2.0, 2.5, 4.5], "sft@3": [0.0, 3.0, 4.0]}


def scripted(**scores: Sequence[float | None]) -> Scripted:
    own = scores or SCORES
    return Scripted(own, {policy: [1, 1, 1] for policy in own})


def run(folder: Path, models: Scripted, **options: Any) -> Artifact:
    own = {"policies": list(models.scripted), "reward": RewardSpec("stage", "rm"), "prompts": "x"}
    step = SelectBest(SelectBest.Options(**{**own, **options}))
    return step.run(context(models, folder, prompts(3, safety=True)))


def test_the_best_mean_is_chosen(tmp_path: Path) -> None:
    artifact = run(tmp_path, scripted())
    found: Any = artifact.summary
    assert artifact.policy == found["policy"] == "sft@2"
    first = row(found, "sft@1", "reward")
    interval = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval()
    assert triple(first.estimate) == pytest.approx((2.0, interval.low, interval.high))
    paired = stats.ttest_rel([1.0, 2.0, 3.0], [2.0, 2.5, 4.5]).confidence_interval()
    assert triple(first.difference) == pytest.approx((-1.0, paired.low, paired.high))
    assert row(found, "sft@2", "reward").difference == {}
    assert json.loads(json.dumps(found)) == found
    lines = said(artifact).splitlines()
    assert lines[0].startswith("selected: sft@2, by mean reward over 3 prompts")
    means, lead = [line for line in lines if line.startswith("reward ")]
    assert "2.0 [-0.5, 4.5]" in means and "-1.0 [" in lead


@pytest.mark.parametrize("order", ["abc", "cba"])
def test_of_equal_ones_the_earlier_is_chosen(tmp_path: Path, order: str) -> None:
    models = scripted(a=[1.0, 2.0, 6.0], b=[0.0, 0.0, 0.0], c=[2.0, 1.0, 6.0])
    assert run(tmp_path, models, policies=list(order)).policy == order[0]


def test_means_are_over_the_prompts_that_all_have_in_common(tmp_path: Path) -> None:
    # Over its own two prompts `a` would win: the hard prompt is the one it has no score for.
    models = scripted(a=[None, 5.0, 6.0], b=[-9.0, 5.5, 6.5])
    artifact = run(tmp_path, models)
    found: Any = artifact.summary
    assert artifact.policy == "b" and "1 left out" in said(artifact)
    assert (found["prompts"], found["left_out"]) == (2, 1)
    assert row(found, "b", "reward").estimate["mean"] == 6.0
    models.full = {("b", 1)}
    assert (run(tmp_path, models).summary or {})["prompts"] == 1
    with pytest.raises(RunFailed, match="none of 3 prompts"):
        run(tmp_path, scripted(a=[None] * 3, b=[1.0] * 3))


def test_answers_are_sampled_as_asked_and_scored_with_the_prompts_own_columns(
    tmp_path: Path,
) -> None:
    models, asked = scripted(), {"max_new_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
    text = said(run(tmp_path, models, samples_per_prompt=2, sampling=asked))
    common = {"seed": 7, "samples_per_prompt": 2, **asked}
    assert models.sampled == [{"role": role, **common} for role in SCORES]
    assert models.columns == [{"safety": True}] * 3
    assert "sampled with max_new_tokens 5, temperature 0.0, stop" in text


@pytest.mark.parametrize(("policies", "word"), [("a", "at least 2"), ("aa", "duplicates: a")])
def test_policies_must_be_two_and_distinct(policies: str, word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        SelectBest.Options(policies=list(policies), reward="x", prompts="y")
