"""Steps and rewards sample as training does, unless they say otherwise; what they use is part of
the stage's hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RecipeError
from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.sampling import SamplingOptions
from alignkit_plugins.compare.comparison import AnswerOptions

RECIPE = """
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  labels: {step: judge_pairs, judge: local_judge, prompts: demos.jsonl, policy: sft}
  helpful: {algorithm: reward_model, data: labels}
  best:
    algorithm: rejection_sampling
    from: sft
    prompts: demos.jsonl
    reward: helpful
    rollout:
      {samples_per_prompt: 4, max_new_tokens: 24, min_new_tokens: 3, temperature: 0.7, top_p: 0.9, stop: ["\\n\\n"]}
  align:
    algorithm: grpo
    from: sft
    prompts: demos.jsonl
    reward: {weighted_sum: {rewards: {j: {rlaif: {judge: local_judge}}}, weights: {j: 1.0}}}
    rollout: {max_new_tokens: 40, top_k: 50, missing_eos_penalty: 0.3}
  choice: {step: select_best, policies: [align, sft], reward: helpful, prompts: demos.jsonl, sampling: {temperature: 0}}
  report:
    step: evaluate
    policies: [sft, best, align]
    rewards: [helpful, {rlaif: {judge: local_judge}}]
    prompts: demos.jsonl
    sampling: {temperature: 0.5}
"""
BEST = {
    "max_new_tokens": 24,
    "min_new_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "stop": ["\n\n"],
}


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "demos.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    return load_recipe(folder / "recipe.yaml", list(overrides))


def options(found: Recipe, stage: str) -> Any:
    return found.stages[stage].component.options


WITHOUT = ["~stages.best", "~stages.align", "~stages.choice", "stages.report.policies=[sft]"]
NINE = "stages.report.sampling={max_new_tokens: 9}"


@pytest.mark.parametrize(
    ("stage", "overrides", "sampled"),
    [
        ("report", [], {**BEST, "temperature": 0.5}),
        ("choice", [], {"max_new_tokens": 40, "temperature": 0.0, "top_k": 50}),
        # A policy that is trained offline: as in the recipe's first online stage, although that
        # runs later.
        ("labels", [], BEST),
        ("labels", ["stages.best.rollout.temperature=0.9"], {**BEST, "temperature": 0.9}),
        # Without an online stage, the defaults of rollout
        ("report", WITHOUT, {"max_new_tokens": 128, "temperature": 0.5}),
        # A report has its own temperature: that of training is for learning, not for reading.
        ("report", [NINE], {**BEST, "min_new_tokens": 3, "max_new_tokens": 9}),
        ("report", ["~stages.report.sampling"], BEST),
        # An inherited minimum never exceeds the written maximum.
        (
            "report",
            ["stages.report.sampling={max_new_tokens: 2}"],
            {**BEST, "min_new_tokens": 2, "max_new_tokens": 2},
        ),
    ],
)
def test_a_step_samples_as_the_first_online_stage_among_its_policies(
    stage: str, overrides: list[str], sampled: dict[str, Any], tmp_path: Path
) -> None:
    assert options(recipe(tmp_path, *overrides), stage).sampled() == sampled


def test_a_changed_rollout_changes_the_steps_that_follow_it(tmp_path: Path) -> None:
    def hashes(*overrides: str) -> list[str]:
        found = recipe(tmp_path, *overrides)
        return [
            digest(stage_parts(found.stages[name], found, "base", {}, RunData(Path, 0)))
            for name in ("labels", "choice")
        ]

    (labels, choice), (changed, same) = hashes(), hashes("stages.best.rollout.top_p=0.5")
    # `labels` does not depend on the stage `best`, only on its rollout
    assert labels != changed and choice == same


def test_a_rollout_that_changes_nothing_leaves_the_steps_reusable(tmp_path: Path) -> None:
    """A report of SFT's answers is the same whether the other stage learns from samples or from
    pairs.
    """

    def hashed(rollout: str = "") -> str:
        keys = (
            f"algorithm: grpo, from: sft, prompts: {tmp_path}/demos.jsonl, reward: helpful, "
            f"rollout: {{{rollout}}}"
        )
        found = recipe(
            tmp_path,
            *("~stages.best", "~stages.align", "~stages.choice"),
            *(
                "stages.report.policies=[sft]",
                "stages.report.rewards=[helpful]",
                "stages.report.sampling.max_new_tokens=40",
            ),
            *((f"stages.more={{{keys}}}",) if rollout else ()),
        )
        return digest(stage_parts(found.stages["report"], found, "base", {}, RunData(Path, 0)))

    assert hashed("temperature: 0.7, min_new_tokens: 0, top_p: 1.0, top_k: 0, stop: []") == hashed()
    assert hashed("temperature: 0.7, top_k: 9") != hashed()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("report.sampling.stop=['']", "stop"),
        ("report.sampling.top_p=0", "top_p"),
        ("report.sampling.top_k=-1", "top_k"),
        ("report.sampling.max_new_tokens=0", "max_new_tokens"),
        ("report.sampling.min_new_tokens=-1", "min_new_tokens"),
        ("report.sampling={max_new_tokens: 4, min_new_tokens: 9}", "9 is above max_new_tokens 4"),
        (
            "labels={step: judge_pairs, judge: local_judge, data: ., sampling: {stop: [x]}}",
            "`data` is not sampled",
        ),
    ],
)
def test_impossible_sampling_is_refused(
    override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, f"stages.{override}")


def test_options_alone_have_the_defaults_of_rollout() -> None:
    assert SamplingOptions().sampled() == {"max_new_tokens": 128, "temperature": 1.0}
    assert AnswerOptions().sampled() == {"max_new_tokens": 128, "temperature": 0.7}
    for temperature in (0.7, 1.0):
        options = AnswerOptions.model_validate(
            {"sampling": {"stop": ["x"], "temperature": temperature}}
        )
        assert options.sampled() == {
            "max_new_tokens": 128,
            "temperature": temperature,
            "stop": ["x"],
        }
