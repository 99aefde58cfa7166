"""Steps and rewards sample as training does, unless they say otherwise; what they use is part of
the stage's hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.contract.settings import SamplingOptions
from alignkit.errors import RecipeError
from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.compare.comparison import AnswerOptions
from tests.rows import cells

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
    keep_versions: true
    rollout: {max_new_tokens: 40, top_k: 50, missing_eos_penalty: 0.3}
  choice: {step: select_best, policies: [align, sft], reward: helpful, prompts: demos.jsonl, sampling: {temperature: 0}}
  report:
    step: evaluate
    policies: [sft, best, align]
    rewards: [helpful, {rlaif: {judge: local_judge}}]
    prompts: demos.jsonl
    sampling: {temperature: 0.5}
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "demos.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    return load_recipe(folder / "recipe.yaml", list(overrides))


def hashed(folder: Path, stage: str, *overrides: str) -> str:
    found = recipe(folder, *overrides)
    return digest(stage_parts(found.stages[stage], found, "base", {}, RunData(Path)))


BEST = 'max_new_tokens: 24, min_new_tokens: 3, temperature: 0.7, top_p: 0.9, stop: ["\\n\\n"]'
WITHOUT = ["~stages.best", "~stages.align", "~stages.choice", "stages.report.policies=[sft]"]
# Its policy is trained offline: as in the recipe's first online stage, although that runs later.
# Without an online stage, the defaults of rollout. A report has its own temperature: that of
# training is for learning, not for reading. An inherited minimum never exceeds the written maximum.
SAMPLED = """\
report |                                                | BEST, temperature: 0.5
choice | stages.choice.policies=["align@2", sft]        | max_new_tokens: 40, temperature: 0.0, top_k: 50
labels |                                                | BEST
labels | stages.best.rollout.temperature=0.9            | BEST, temperature: 0.9
report | WITHOUT                                        | max_new_tokens: 128, temperature: 0.5
report | stages.report.sampling={max_new_tokens: 9}     | BEST, max_new_tokens: 9
report | stages.report.sampling={top_p: 1}              | BEST, top_p: 1
report | ~stages.report.sampling                        | BEST
report | stages.report.sampling={max_new_tokens: 2}     | BEST, min_new_tokens: 2, max_new_tokens: 2
"""


@pytest.mark.parametrize(("stage", "override", "sampled"), cells(SAMPLED))
def test_a_step_samples_as_the_first_online_stage_among_its_policies(
    stage: str, override: str, sampled: str, tmp_path: Path
) -> None:
    overrides = WITHOUT if override == "WITHOUT" else [override] * bool(override)
    options: Any = recipe(tmp_path, *overrides).stages[stage].component.options
    wanted = yaml.safe_load(f"{{{sampled.replace('BEST', BEST)}}}")
    assert options.sampled() | {"top_p": options.sampling.top_p} == {"top_p": 1, **wanted}


def test_a_changed_rollout_changes_the_steps_that_follow_it(tmp_path: Path) -> None:
    """`labels` does not depend on the stage `best`, only on its rollout."""
    change = "stages.best.rollout.top_p=0.5"
    assert hashed(tmp_path, "labels") != hashed(tmp_path, "labels", change)
    assert hashed(tmp_path, "choice") == hashed(tmp_path, "choice", change)


def test_a_rollout_that_changes_nothing_leaves_the_steps_reusable(tmp_path: Path) -> None:
    """A report of SFT's answers is the same whether the other stage learns from samples or from
    pairs.
    """
    report = ["stages.report.rewards=[helpful]", "stages.report.sampling.max_new_tokens=40"]
    keys = f"algorithm: grpo, from: sft, prompts: {tmp_path}/demos.jsonl, reward: helpful"
    offline = hashed(tmp_path, "report", *WITHOUT, *report)
    for rollout, same in (
        ("temperature: 0.7, min_new_tokens: 0, top_p: 1.0, top_k: 0, stop: []", True),
        ("temperature: 0.7, top_k: 9", False),
    ):
        more = f"stages.more={{{keys}, rollout: {{{rollout}}}}}"
        assert (hashed(tmp_path, "report", *WITHOUT, *report, more) == offline) == same


REFUSED = """\
report.sampling.stop=['']                                   | stop
report.sampling.top_p=0                                     | top_p
report.sampling.top_k=-1                                    | top_k
report.sampling.max_new_tokens=0                            | max_new_tokens
report.sampling.min_new_tokens=-1                           | min_new_tokens
report.sampling={max_new_tokens: 4, min_new_tokens: 9}      | 9 is above max_new_tokens 4
labels={step: judge_pairs, judge: local_judge, data: ., sampling: {stop: [x]}} | `data` is not sampled
"""


@pytest.mark.parametrize(("override", "said"), cells(REFUSED))
def test_impossible_sampling_is_refused(
    override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, f"stages.{override}")


def test_options_alone_have_the_defaults_of_rollout() -> None:
    default = {"max_new_tokens": 128, "temperature": 1.0}
    assert SamplingOptions().sampled() == default
    assert AnswerOptions().sampled() == {**default, "temperature": 0.7}
    written = {**default, "stop": ["x"]}
    assert AnswerOptions.model_validate({"sampling": written}).sampled() == written
