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


def test_a_step_samples_as_the_first_online_stage_among_its_policies(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    assert options(found, "report").sampled() == {**BEST, "temperature": 0.5}
    assert options(found, "choice").sampled() == {
        "max_new_tokens": 40,
        "temperature": 0.0,
        "top_k": 50,
    }
    # A policy that is trained offline: as in the recipe's first online stage, although that runs
    # later.
    assert options(found, "labels").sampled() == BEST
    assert "samples_per_prompt" not in options(found, "report").sampled()


def test_without_an_online_stage_the_defaults_of_rollout_apply(tmp_path: Path) -> None:
    found = recipe(
        tmp_path, "~stages.best", "~stages.align", "~stages.choice", "stages.report.policies=[sft]"
    )
    assert options(found, "report").sampled() == {"max_new_tokens": 128, "temperature": 0.5}


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


def test_an_inherited_minimum_never_exceeds_the_written_maximum(tmp_path: Path) -> None:
    assert (
        options(recipe(tmp_path, "stages.report.sampling.max_new_tokens=2"), "report").sampled()[
            "min_new_tokens"
        ]
        == 2
    )
    with pytest.raises(RecipeError, match="min_new_tokens 9 is above max_new_tokens 4"):
        recipe(
            tmp_path,
            "stages.report.sampling.max_new_tokens=4",
            "stages.report.sampling.min_new_tokens=9",
        )


@pytest.mark.parametrize(
    "override", ["stop=['']", "top_p=0", "top_k=-1", "max_new_tokens=0", "min_new_tokens=-1"]
)
def test_impossible_sampling_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        recipe(tmp_path, f"stages.report.sampling.{override}")


def test_sampling_of_rows_that_are_there_is_refused(tmp_path: Path) -> None:
    labels = (
        f"{{step: judge_pairs, judge: local_judge, data: {tmp_path}, sampling: {{stop: [x], "
        f"top_p: 1}}}}"
    )
    with pytest.raises(RecipeError, match="`data` is not sampled: leave sampling out"):
        recipe(tmp_path, f"stages.labels={labels}")


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


def test_a_report_samples_at_its_own_temperature(tmp_path: Path) -> None:
    """Unless the recipe says so: the temperature of training is that of learning, not of
    reading.
    """
    found = recipe(tmp_path, "stages.report.sampling={max_new_tokens: 9}")
    assert options(found, "report").sampled() == {**BEST, "max_new_tokens": 9, "temperature": 0.7}
    assert options(recipe(tmp_path, "~stages.report.sampling"), "report").sampled() == {
        **BEST,
        "temperature": 0.7,
    }
    assert (
        options(recipe(tmp_path, "stages.best.rollout.temperature=0.9"), "labels").sampled()[
            "temperature"
        ]
        == 0.9
    )
