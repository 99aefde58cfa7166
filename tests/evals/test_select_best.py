"""The step that picks a policy by its mean reward: against scripted models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import Artifact, RunFailed, StepData
from alignkit_plugins.evals.select_best import SelectBest
from tests.evals.scripted import HELPFUL, Scripted, context, lines, prompts, said

SCORES = {"a": [1.0, 2.0, 3.0], "b": [2.0, 2.5, 4.5], "c": [0.0, 3.0, 4.0]}


def run(
    folder: Path, scores: Any = SCORES, full: Any = (), **options: Any
) -> tuple[Artifact, Scripted]:
    models = Scripted(scores, dict.fromkeys(scores, [1] * 3))
    models.full = full
    own = {"policies": list(scores), "reward": HELPFUL, "prompts": "x", **options}
    made = SelectBest(SelectBest.Options(**own))
    three, checked = prompts(3, safety=True), list[int]()
    data = StepData(lambda spec: three, lambda reward, groups: checked.append(len(groups)))
    made.check_data(data)
    assert checked == [3]
    return made.run(context(models, folder, [*three, three[0]])), models


def test_the_best_mean_is_chosen_of_answers_that_are_sampled_as_asked(tmp_path: Path) -> None:
    """And scored with the prompts' own columns."""
    asked = {"max_new_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
    artifact, models = run(tmp_path, samples_per_prompt=2, sampling=asked)
    found: Any = artifact.summary
    assert artifact.policy == found["policy"] == "b"
    common = {"seed": 7, "samples_per_prompt": 2, **asked}
    assert models.sampled == [{"role": role, **common} for role in SCORES]
    assert models.columns == [{"safety": True}] * 3
    # As scipy's ttest_1samp and ttest_rel have them
    assert lines(found)[:2] == [
        "a reward | b | 2 -0.4841 4.484 3 | -1 -2.242 0.2421 3 0.25 | 0 | 0/3/0 0",
        "b reward |  | 3 -0.2862 6.286 3 |  |  | 0",
    ]
    text = said(artifact)
    assert text.startswith("selected: b, by mean reward over 3 prompts")
    assert "1 of 4 prompts repeat the words" in text
    assert "sampled with max_new_tokens 5, temperature 0.0, stop" in text
    assert "2.0 [-0.5, 4.5]" in text and "-1.0 [" in text


@pytest.mark.parametrize("order", ["abc", "cba"])
def test_of_equal_ones_the_earlier_is_chosen(tmp_path: Path, order: str) -> None:
    scores: dict[str, Sequence[float]] = {"a": [1, 2, 6], "b": [0, 0, 0], "c": [2, 1, 6]}
    assert run(tmp_path, scores, policies=list(order))[0].policy == order[0]
    rounded = {"a": [0.1, 0.2, 0.3], "b": [0.2, 0.2, 0.2]}  # 0.19999999999999998, and more
    assert run(tmp_path, rounded)[0].policy == "a"


def test_means_are_over_the_prompts_that_all_have_in_common(tmp_path: Path) -> None:
    # Over its own two prompts `a` would win: the hard prompt is the one it has no score for.
    scores = {"a": [None, 5.0, 6.0], "b": [-9.0, 5.5, 6.5]}
    artifact, _ = run(tmp_path, scores)
    found: Any = artifact.summary
    assert artifact.policy == "b" and "1 left out" in said(artifact)
    assert (found["prompts"], found["left_out"]) == (2, 1)
    assert (run(tmp_path, scores, {("b", 1)})[0].summary or {})["prompts"] == 1
    with pytest.raises(RunFailed, match="none of 3 prompts"):
        run(tmp_path, {"a": [None] * 3, "b": [1.0] * 3})


@pytest.mark.parametrize(("policies", "word"), [("a", "at least 2"), ("aa", "duplicates: a")])
def test_policies_must_be_two_and_distinct(policies: str, word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        SelectBest.Options(policies=list(policies), reward="x", prompts="y")
