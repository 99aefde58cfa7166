"""The step that picks a policy by its mean reward: against scripted models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from by_role import ByRole
from pydantic import ValidationError
from scipy import stats

from alignkit import Artifact, Group, Response, RunFailed, StepContext
from alignkit.evaluation import statistics
from alignkit.recipe.schema import RewardSpec
from alignkit.training.rewards import Rewards
from alignkit_plugins.evaluate.select_best import SelectBest

SCORES: dict[str, list[float | None]] = {
    "sft@1": [1.0, 2.0, 3.0],
    "sft@2": [2.0, 2.5, 4.5],
    "sft@3": [0.0, 3.0, 4.0],
}


class Scripted(ByRole):
    """Models whose answers of a policy to prompt i score SCORES[policy][i]."""

    def __init__(self, scores: dict[str, list[float | None]]):
        self.scripted = scores
        self.full: set[tuple[str, int]] = set()
        self.sampled: list[dict[str, Any]] = []
        self.metas: list[Any] = []

    def sample(self, role: str, prompts: Any, **sampling: Any) -> list[Group]:
        prompts = [group.prompt for group in prompts]
        self.sampled.append({"role": role, **sampling})
        count = sampling["samples_per_prompt"]
        return [
            Group(
                tuple(prompt),
                tuple(
                    Response(f"{role}", source="other") for _ in range(self._count(role, i, count))
                ),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _count(self, role: str, i: int, count: int) -> int:
        return 0 if (role, i) in self.full else count

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        self.metas += [group.meta for group in groups]
        return [
            self.scripted[r.source or ""][int(g.prompt[-1]["content"])]
            for g in groups
            for r in g.responses
        ]


def run(folder: Path, models: Scripted, **options: Any) -> Artifact:
    options = {
        "policies": list(models.scripted),
        "reward": RewardSpec("stage", "rm"),
        "prompts": "x",
        **options,
    }
    step = SelectBest(SelectBest.Options(**options))
    found = [Group(({"role": "user", "content": str(i)},), meta={"safety": True}) for i in range(3)]

    def scorer(spec: RewardSpec) -> Rewards:
        return Rewards(spec, context)

    context = StepContext(
        models=models,  # type: ignore[arg-type]
        cache=folder,
        folder=folder,
        seed=3,
        out=folder,
        load=lambda spec: found,
        scorer=scorer,
        map=lambda name, rows, f: list(f(rows)),
        log=lambda **values: None,
        say=lambda text: None,
    )
    return step.run(context)


def said(artifact: Artifact) -> str:
    return artifact.report.text(200) if artifact.report else ""


def test_the_best_mean_is_chosen(tmp_path: Path) -> None:
    artifact = run(tmp_path, Scripted(SCORES))
    found = dict(artifact.summary or {})
    assert artifact.policy == found["policy"] == "sft@2"
    results = {row["policy"]: row for row in found["results"]}
    means = results["sft@1"]["estimate"]
    interval = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval()
    assert (means["mean"], means["low"], means["high"]) == pytest.approx(
        (2.0, interval.low, interval.high)
    )
    behind = results["sft@1"]["difference"]
    paired = stats.ttest_rel([2.0, 2.5, 4.5], [1.0, 2.0, 3.0]).confidence_interval()
    assert (-behind["mean"], -behind["high"], -behind["low"]) == pytest.approx(
        (1.0, paired.low, paired.high)
    )
    assert "difference" not in results["sft@2"]
    assert json.loads(json.dumps(found)) == found
    lines = said(artifact).splitlines()
    assert lines[0].startswith("selected: sft@2, by mean reward over 3 prompts")
    (means_line, lead_line) = [line for line in lines if line.startswith("reward ")]
    assert "2.0 [-0.5, 4.5]" in means_line and "-1.0 [" in lead_line


def test_binary_rewards_have_intervals_of_rates(tmp_path: Path) -> None:
    scores: dict[str, list[float | None]] = {"a": [1.0, 1.0, 1.0], "b": [1.0, 0.0, 1.0]}
    found = dict(run(tmp_path, Scripted(scores)).summary or {})
    results = {row["policy"]: row for row in found["results"]}
    rate = statistics.rate([1.0, 1.0, 1.0])
    assert results["a"]["estimate"] == rate and (rate["low"] or 1) < 1
    behind = statistics.paired_rates([1.0, 0.0, 1.0], [1.0, 1.0, 1.0])
    assert results["b"]["difference"] == behind


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"]])
def test_of_equal_ones_the_earlier_is_chosen(tmp_path: Path, order: list[str]) -> None:
    scores: dict[str, list[float | None]] = {
        "a": [1.0, 2.0, 6.0],
        "b": [0.0, 0.0, 0.0],
        "c": [2.0, 1.0, 6.0],
    }
    assert run(tmp_path, Scripted(scores), policies=order).policy == order[0]


def test_means_are_over_the_prompts_that_all_have_in_common(tmp_path: Path) -> None:
    # Over its own two prompts `a` would win: the hard prompt is the one it has no score for.
    models = Scripted({"a": [None, 5.0, 6.0], "b": [-9.0, 5.5, 6.5]})
    artifact = run(tmp_path, models)
    found = dict(artifact.summary or {})
    assert artifact.policy == "b"
    assert (found["prompts"], found["left_out"]) == (2, 1)
    assert found["results"][1]["estimate"]["mean"] == 6.0
    assert "1 left out" in said(artifact)
    models.full = {("b", 1)}
    assert dict(run(tmp_path, models).summary or {})["prompts"] == 1
    with pytest.raises(RunFailed, match="none of 3 prompts"):
        run(tmp_path, Scripted({"a": [None] * 3, "b": [1.0] * 3}))


def test_same_streams_and_the_prompts_own_columns(tmp_path: Path) -> None:
    models = Scripted(SCORES)
    run(
        tmp_path,
        models,
        samples_per_prompt=2,
        sampling={"max_new_tokens": 5, "temperature": 0.0},
    )
    common = {"seed": 3, "samples_per_prompt": 2, "max_new_tokens": 5, "temperature": 0.0}
    assert models.sampled == [{"role": role, **common} for role in SCORES]
    assert models.metas == [{"safety": True}] * 3


def test_answers_are_sampled_as_asked_and_the_report_says_how(tmp_path: Path) -> None:
    models = Scripted(SCORES)
    text = said(
        run(
            tmp_path,
            models,
            sampling={"stop": ["\n"], "top_p": 0.9, "top_k": 2, "min_new_tokens": 1},
        )
    )
    assert models.sampled[0]["stop"] == ["\n"] and models.sampled[0]["top_k"] == 2
    assert text.splitlines()[-1].startswith(
        "sampled with max_new_tokens 128, temperature 1.0, min_new_tokens 1, top_p"
    )


def test_policies_must_be_two_and_distinct() -> None:
    for policies, message in ((["a"], "at least 2"), (["a", "a"], "duplicates: a")):
        with pytest.raises(ValidationError, match=message):
            SelectBest.Options(policies=policies, reward="x", prompts="y")
