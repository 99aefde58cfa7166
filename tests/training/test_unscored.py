"""An iteration without a single score ends in an error that says whose code gave none, for which
row, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from by_role import ByRole
from played import run_of
from scripted import END, call, follow
from test_scoring import combination

from alignkit import CombinedReward, Group, Message, Response, RunFailed
from alignkit.recipe.schema import RewardSpec
from alignkit.training.rewards import Rewards
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.rewards.combinations import WeightedSum
from tests.rows import Said, run, write_recipe

PLUGIN = """
from alignkit import *
from alignkit.judges import CheckedJudge, Rating

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
        return {"": [rating.score for rating in self.judge.rate(items)]}

class Silent(Reward):
    def score(self, groups):
        return {"": [None for group in groups for response in group.responses]}

@hookimpl
def register(add):
    add("judge", "strict", Strict)
    add("reward", "rated", Rated)
    add("reward", "silent", Silent)
"""
ALIGN = {
    "algorithm": "rloo",
    "prompts": "prompts.jsonl",
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
    "iterations": 1,
    "prompts_per_iteration": 2,
}
PROMPT = (Message(role="user", content="how are you"),)


def failed(folder: Path, reward: Any, said: Said) -> str:
    (folder / "strangers.py").write_text(PLUGIN, encoding="utf-8")
    recipe = write_recipe(folder, {"align": {**ALIGN, "reward": reward}})
    run(recipe, "--plugin", str(folder / "strangers.py"), code=1)
    return said()


def test_an_environment_without_a_reward_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(Calculator):
        def get_reward(self) -> None:  # type: ignore[override]
            return None

    follow(monkeypatch, [[call("2 + 3")], [f"5{END}"]])
    with pytest.raises(RunFailed) as caught:
        run_of(tmp_path, Never).execute()
    caught.match(r"reward 'environment' has no score, first in the row 'What is \d \+ 3\?'")


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
    err = failed(tmp_path, yaml.safe_load(reward), said)
    assert "stage 'align': no response could be scored" in err and "prompts.jsonl:" in err
    assert whose in err and "reward 'b'" not in err
    assert ("; a judge said: the server is closed" in err) == ("strict" in reward)


def test_a_reward_model_without_room_is_named() -> None:
    def scores(name: str, groups: Sequence[Group]) -> list[None]:
        return [None for group in groups for _ in group.responses]

    context: Any = SimpleNamespace(models=ByRole(scores=scores), stage="")
    rewards = Rewards(RewardSpec("stage", "liked"), context)
    table = rewards.combine(rewards.ask([Group(PROMPT, (Response("x"), Response("y")))]))
    assert not table.groups
    error = rewards.nothing_scored(table)
    assert "reward 'liked' has no score, first in the row 'how are you'" in error


def test_a_combination_that_loses_all_scores_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def combine(
        self: Any, groups: Sequence[Group], components: Mapping[str, torch.Tensor]
    ) -> CombinedReward:
        nothing = torch.full((1,), torch.nan, dtype=torch.float64)
        return CombinedReward(nothing, nothing, {})

    monkeypatch.setattr(WeightedSum, "combine", combine)
    whole = "weighted_sum: {rewards: {a: {length: {unit: words}}}, weights: {a: 1}}"
    rewards = combination(tmp_path, yaml.safe_load(whole))
    error = rewards.nothing_scored(rewards.combine(rewards.ask([Group(PROMPT, (Response("x"),))])))
    assert error == "reward 'weighted_sum' makes no number of the scores of its parts"
