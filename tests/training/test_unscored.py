"""An iteration without a single score ends in an error that says whose code gave none, for which
row, and why.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from test_scoring import combination

from alignkit import CombinedReward, Verdict
from alignkit.cli import main
from alignkit.contract.reward import Rating
from alignkit.training.rollouts import Rollouts
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.rewards.combinations import WeightedSum
from tests.rows import Said, demos, pairs, run, with_plugin, write_recipe, write_rows

PLUGIN = """
from alignkit import *
from alignkit.host.judges import CheckedJudge, Rating

class Strict(Judge):
    def rate(self, items, rubric=""):
        return [Rating(None, "the server is closed: try again") for item in items]

    def compare(self, items):
        return [Verdict(None, reason="the server is closed: try again") for item in items]

class Rated(Reward):
    class Options(Options):
        judge: JudgeRef = Field(description="x")

    def prepare(self, context):
        self.judge = CheckedJudge(self.options.judge, context)

    def score(self, groups):
        items = [(group.prompt, response.text) for group in groups for response in group.responses]
        return [rating.score for rating in self.judge.rate(items)]

class Silent(Reward):
    def score(self, groups):
        return [None for group in groups for response in group.responses]

@hookimpl
def register(add):
    add("judge", "strict", Strict)
    add("reward", "rated", Rated)
    add("reward", "silent", Silent)
"""
ALIGN = """
algorithm: rloo
prompts: prompts.jsonl
rollout: {samples_per_prompt: 2, max_new_tokens: 4}
iterations: 1
prompts_per_iteration: 2
reward:
"""


@pytest.mark.parametrize(
    ("reward", "whose"),
    [
        ("rated: {judge: strict}", "reward 'rated' has no score, first in the row '"),
        ("rlaif: {judge: strict}", "reward 'rlaif' has no score"),
        ("weighted_sum: {rewards: {a: silent, b: {length: {}}}, weights: {a: 1, b: 1}}", "'a'"),
    ],
)
def test_whose_code_gave_no_score_is_told_with_a_row_and_a_judges_reason(
    tmp_path: Path, said: Said, reward: str, whose: str
) -> None:
    recipe = write_recipe(tmp_path, {"align": yaml.safe_load(f"{ALIGN}  {reward}")})
    run(recipe, *with_plugin(tmp_path / "strangers.py", PLUGIN), code=1)
    err = said()
    assert "stage 'align': no response could be scored" in err and "prompts.jsonl:" in err
    assert whose in err and "reward 'b'" not in err
    assert ("; reason: the server is closed" in err) == ("strict" in reward)


STEPS = """
scored: {step: evaluate_reward, pairs: pairs.jsonl, rewards: [{rated: {judge: strict}}]}
sampled: {step: sample, prompts: pairs.jsonl, reward: {rated: {judge: strict}}}
"""


@pytest.mark.parametrize("stage", ["scored", "sampled"])
def test_a_step_says_how_many_have_no_score_and_why(tmp_path: Path, said: Said, stage: str) -> None:
    write_rows(tmp_path / "pairs.jsonl", pairs())
    recipe = write_recipe(tmp_path, {stage: yaml.safe_load(STEPS)[stage]})
    run(recipe, *with_plugin(tmp_path / "strangers.py", PLUGIN))
    count = {"scored": 6, "sampled": 3}[stage]
    why = "the server is closed: try again"
    told = f"rated: {count} responses without a score; reason: {why}"
    assert f"{stage}: warning: {told}" in said()
    assert told in {one["text"] for one in facts_of(recipe.parent / "run")["warnings"]}


def test_evaluate_says_how_many_have_no_score_and_why(tmp_path: Path, said: Said) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pairs())
    words = ["evaluate", str(rows), "--reward", "{rated: {judge: strict}}"]
    assert main([*words, *with_plugin(tmp_path / "strangers.py", PLUGIN)]) == 0
    told = said()
    assert "rated: 6 responses without a score; reason: the server is closed: try again" in told
    assert "rated: mean - of 0 examples; 6 responses without a score" in told


def test_the_first_reason_of_each_kind_is_told() -> None:
    told = [Rating(None, "HTTP 413: long"), Rating(1.0), Rating(None, "HTTP 413: longer")]
    table = Rollouts(verdicts=[*told, Verdict(None, reason="cut")])
    assert table.why_unscored() == "; reason: HTTP 413: long; cut"


def test_a_combination_that_loses_all_scores_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    monkeypatch.setattr(WeightedSum, "combine", lambda *given: CombinedReward(nothing))
    rewards = combination(
        tmp_path, "weighted_sum: {rewards: {a: {length: {unit: words}}}, weights: {a: 1}}"
    )
    error = rewards.nothing_scored(rewards.combine(rewards.ask(demos(["x"]))))
    assert error == "reward 'weighted_sum' makes no number of the scores of its parts"
