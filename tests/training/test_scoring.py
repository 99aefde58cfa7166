"""Rewards of rollouts: what cannot be scored is left out, and what was cut off pays the penalty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from by_role import ByRole
from torch import Tensor

import alignkit
from alignkit import (
    CombinedReward,
    Group,
    Message,
    RecipeError,
    Response,
    RewardCombination,
    RunFailed,
)
from alignkit.data.group import responses_of
from alignkit.errors import PluginError
from alignkit.models.packing import scores_of
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component, Registration
from alignkit.training.rewards import Rewards, RewardTable
from alignkit_plugins.ai_feedback.rlaif import RLAIF
from tests.by_hand import scored
from tests.rows import write_recipe

PROMPT = (Message(role="user", content="how are you"),)


def combining(spec: RewardSpec, scores: Mapping[str, Sequence[float | None]]) -> Rewards:
    """The stages' scores are given, one per response."""
    models = ByRole(scores=lambda name, groups: scores[name])
    context: Any = SimpleNamespace(models=models, folder=Path(), load=None, stage="")
    return Rewards(spec, context)


def learn(rewards: Rewards, groups: Sequence[Group], penalty: float = 0.0) -> RewardTable:
    """As an iteration does that learns from all that has a score."""
    return rewards.combine(rewards.ask(groups), penalty)


def learned(table: RewardTable) -> tuple[list[float], list[float]]:
    """The rewards that are learned from, and the raw ones."""
    rewards, raw = (scores_of(table.groups, name) for name in ("learned_reward", "reward"))
    return rewards.tolist(), raw.tolist()


X, Y = RewardSpec("stage", "x"), RewardSpec("stage", "y")
CUT = Response(text="c", truncated=True)
GROUPS = [
    Group(PROMPT, (Response(text="a", tokens=(1, 2)), Response(text="b"), CUT), id="a"),
    Group(PROMPT, (Response(text="d", tokens=(3,)),), id="b"),
]


@pytest.mark.silent_bug(
    "rewards: missing scores",
    "A missing reward counts as 0 in the baseline of its group.",
    "The response is left out and counted.",
    "huggingface/trl#5902",
)
def test_responses_without_a_score_are_left_out_and_those_that_were_cut_off_pay() -> None:
    """One meaning of `reward`: in what is learned, in the files of rollouts, and in the metrics."""
    scorer = combining(X, {"x": [1.0, None, 3.0, None]})
    table = learn(scorer, GROUPS, penalty=0.5)
    assert [group.id for group in table.groups] == ["a"]
    assert learned(table) == ([1.0, 2.5], [1.0, 2.5])
    none = {"x": None, "reward": None}
    scores = [{"x": 1.0, "reward": 1.0}, none, {"x": 3.0, "reward": 2.5}, none]
    assert [response.scores for response in responses_of(table.scored)] == scores
    means = {
        "reward": 1.75,
        "reward_std": 0.75,
        "score/x": 2.0,
        "missing_eos_penalty": 0.25,
        "unscored": 2,
    }
    means |= {"response_tokens": 1.0, "truncated": 0.5}  # of those that are learned
    assert table.summary().items() >= means.items()
    two = learn(combining(X, {"x": [1.0, 2.0, 3.0, None]}), GROUPS, penalty=0.75)
    assert two.summary()["missing_eos_penalty"] == 0.25
    assert "missing_eos_penalty" not in learn(scorer, GROUPS).summary()
    reported = scorer.combine(scorer.ask(GROUPS), 0.5, learns=False)
    assert [response.reward for response in reported.groups[0].responses[::2]] == [1.0, 3.0]
    assert learn(combining(X, {"x": [0.1]}), GROUPS[1:]).raw.tolist() == [0.1]
    nothing = learn(combining(X, {"x": [None]}), GROUPS[1:])
    assert nothing.groups == [] and int(nothing.raw.isnan().sum()) == 1


def test_a_model_in_several_places_of_an_expression_scores_once() -> None:
    scores = Mock(return_value=[1.0, 2.0, 3.0])
    context: Any = SimpleNamespace(models=ByRole(scores=scores), stage="")
    together = Rewards(doubled("both", left=X, right=doubled("inner", again=X)), context)
    assert learn(together, GROUPS[:1]).raw.tolist() == [2.0, 4.0, 6.0] and scores.call_count == 1


def combination(folder: Path, reward: str) -> Rewards:
    """The reward of a recipe, without models."""
    stage = {"algorithm": "rloo", "prompts": "prompts.jsonl", "reward": yaml.safe_load(reward)}
    settings: Any = load_recipe(write_recipe(folder, {"align": stage})).stages["align"].settings
    context: Any = SimpleNamespace(models=None, stage="", folder=folder)
    return Rewards(settings.reward, context)


LLAMA2 = "{llama2: {helpful: length, safety: length}}"


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "llama2: {safety: length, helpful: {weighted_sum: {rewards: {x: LLAMA2}, weights: {x: 1}}}}",
            "'llama2' compares raw scores, so its part 'helpful'",
        ),
        ("equal_length: {reward: LLAMA2}", "'equal_length' compares raw scores"),
        ("weighted_sum: {rewards: {reward: length}, weights: {reward: 1}}", "cannot be named"),
    ],
)
def test_parts_that_do_not_suit_their_combination_are_refused(
    tmp_path: Path, reward: str, message: str
) -> None:
    """Whitened parts where raw scores are compared, and one whose scores would be overwritten."""
    with pytest.raises(RecipeError, match=message):
        combination(tmp_path, reward.replace("LLAMA2", LLAMA2))


def test_a_raw_part_is_compared_with_others(tmp_path: Path) -> None:
    raw = (
        "llama2: {safety: length, helpful: {llama2: {helpful: length, safety: length, whiten: no}}}"
    )
    assert combination(tmp_path, raw).root.spec.whitens


def test_a_win_rate_against_the_group_is_within_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RLAIF, "prepare", lambda self, context: None)
    rlaif = "rlaif: {judge: {local_judge: {role: base}}}"
    summed = f"weighted_sum: {{rewards: {{judged: {{{rlaif}}}}}, weights: {{judged: 1}}}}"
    assert combination(tmp_path, summed).within_group
    assert not combination(tmp_path, "length").within_group
    assert not combining(X, {}).within_group


@pytest.mark.parametrize("score", [math.inf, 1e308])
def test_a_reward_of_which_no_mean_is_finite_is_an_error(score: float) -> None:
    with pytest.raises(RunFailed, match=r"reward 'x': return a finite number.*, not "):
        learn(combining(X, {"x": [score]}), GROUPS[1:])


# Combinations


class Doubled(RewardCombination):
    """The sum of its parts; what gradient methods see is twice as much and shifted, as after
    whitening.
    """

    whitens = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(alignkit.Options())

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        whole = sum(components.values())
        groups[0].meta["changed"] = True  # of a copy
        return CombinedReward(self.total(groups, components), whole, {})  # type: ignore[arg-type]

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return 2 * sum(components.values()) - 7  # type: ignore[return-value]


def doubled(name: str, **parts: RewardSpec) -> RewardSpec:
    registration = Registration(name, lambda options: Doubled())
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    return RewardSpec("combine", name, component, parts, whitens=True)


BOTH = doubled("both", first=X, second=Y)
TWO = scored([[None, None], [None]])
INNER = doubled("outer", inner=doubled("inner", first=X), second=Y)


@pytest.mark.parametrize(
    ("spec", "x", "raw", "learned_from"),
    [
        (BOTH, [1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [-4.0, -2.0, 0.0]),
        # The raw scores of the parts add up to the raw score, and their rewards to the reward.
        (INNER, [1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [-16.0, -12.0, -8.0]),
        # A response that lacks a part has no score: zero would be a score like others.
        (BOTH, [1.0, None, 3.0], [1.5, None, 3.5], [-4.0, 0.0]),
    ],
    ids=["both", "nested", "one lacks a part"],
)
def test_selection_sees_raw_rewards_and_learning_those_after_whitening(
    spec: RewardSpec, x: list[float | None], raw: list[float | None], learned_from: list[float]
) -> None:
    table = learn(combining(spec, {"x": x, "y": [0.5, 0.5, 0.5]}), TWO)
    assert [response.scores["reward"] for response in responses_of(table.scored)] == raw
    assert learned(table) == (learned_from, [value for value in raw if value is not None])
    assert not any(group.meta for group in TWO)


# Parts that do not apply

TASKS = """
def maths(completions, task, **kwargs):
    return [1.0 if name == "maths" else None for name in task]

def code(completions, task, **kwargs):
    return [2.0 if name == "code" else None for name in task]
"""
PARTS = """
weighted_sum:
  rewards:
    maths: {python: {path: tasks.py, function: maths}}
    code: {python: {path: tasks.py, function: code}}
    length: {length: {unit: words}}
  weights: {maths: 1, code: 0.5, length: 0}
"""
NESTED = """
weighted_sum:
  rewards:
    both:
      weighted_sum:
        rewards: {maths: {python: {path: tasks.py, function: maths}}}
        weights: {maths: 1}
    c: {length: {unit: characters}}
  weights: {both: 10, c: 1}
"""


def tasks(*names: str) -> list[Group]:
    word = (Response(text="word"),)
    return [Group(PROMPT, word, id=task, meta={"task": task}) for task in names]


@pytest.mark.silent_bug(
    "rewards: does not apply",
    "A reward that abstains makes all advantages of the batch NaN, or its prompts score 0.",
    "A part that does not apply is left out of the sum and counted.",
    "modelscope/ms-swift#8123",
)
def test_a_part_that_does_not_apply_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    rewards = combination(tmp_path, PARTS)
    table = learn(rewards, tasks("maths", "code", "x"))
    assert table.raw.tolist() == [1.0, 1.0, 0.0] and rewards.state() == {}
    counts = {"unscored": 0, "unscored/maths": 2, "unscored/code": 2, "score/code": 2.0}
    assert table.summary().items() >= counts.items()
    nested = learn(combination(tmp_path, NESTED), tasks("maths", "code"))
    assert nested.raw.tolist() == [14.0, 4.0] and list(nested.parts) == ["both/maths", "c"]


@pytest.mark.silent_bug(
    "rewards: does not apply",
    "A reward that failed on every sample silently counts as 0.",
    "A failure leaves the response out and counts as unscored; a sum leaves out a part that does "
    "not apply.",
    "huggingface/trl#5775",
)
def test_a_part_that_failed_is_no_part_that_does_not_apply() -> None:
    """And a combination that needs all of its parts does not see a response to which one does not
    apply.
    """
    given = {"first": [1.0, None, 3.0], "second": [0.5, 0.5, None]}
    scorer = combining(BOTH, {})
    scorer.leaves["first"].plugin = SimpleNamespace(may_not_apply=True)
    scorer._share = lambda leaf, some, own: given[leaf.name]
    table = learn(scorer, TWO)
    assert [response.text for response in responses_of(table.groups)] == ["0.0"]
    counts = {"unscored": 2, "unscored/first": 1, "unscored/second": 1, "score/first": 1.0}
    assert table.summary().items() >= counts.items()


@pytest.mark.silent_bug(
    "rewards: changed input",
    "A reward appends to a column, and later iterations and resumed runs see other data.",
    "A reward gets copies of prompts and columns; the kits refuse one that changes them.",
)
def test_a_reward_that_changes_a_column_changes_a_copy(tmp_path: Path) -> None:
    (tmp_path / "changes.py").write_text(
        "def deep(completions, tests, **kwargs):\n"
        "    tests[0][0]['in'] = 2\n"
        "    tests[0].append('another')\n"
        "    return [1.0] * len(completions)\n"
    )
    scorer = combination(tmp_path, "python: {path: changes.py, function: deep}")
    columns = {"tests": [{"in": 1}], "score": math.nan}
    group = Group(PROMPT, (Response(text="a"),), id="a", meta=columns)
    scorer.score([group])
    assert group.meta["tests"] == [{"in": 1}]


# Combinations that remember


class Growing(RewardCombination):
    """The sum of its parts, times a number that grows with every batch that is learned from."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        total = self.total(groups, components)
        factor = self.state["factor"] = self.state.get("factor", 0.0) + 1.0
        return CombinedReward(total, total, {"factor": factor})

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return (self.state.get("factor", 0.0) + 1.0) * components["part"]  # type: ignore[no-any-return]


def growing(part: RewardSpec) -> RewardSpec:
    registration = Registration("growing", lambda options: Growing(None), plugin="x")
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    return RewardSpec("combine", "growing", component, {"part": part})


@pytest.mark.parametrize("part", [X, doubled("inner", first=X)], ids=["raw", "whitened"])
def test_a_combination_remembers_once_an_iteration_and_continues(part: RewardSpec) -> None:
    scorer, resumed = (combining(growing(part), {"x": [1.0, None, 3.0]}) for _ in range(2))
    for iteration in (1.0, 2.0, 3.0):
        table = learn(scorer, TWO)
        assert learned(table)[1] == [iteration, 3 * iteration]
        assert table.metrics == {"reward/factor": iteration}
        assert scorer.state() == {"growing": {"factor": iteration}}
    scorer.score(TWO)  # an evaluation, or a replay
    assert scorer.state() == {"growing": {"factor": 3.0}}
    resumed.restore(json.loads(json.dumps(scorer.state())))
    assert learned(learn(resumed, TWO)) == learned(learn(scorer, TWO))
    resumed.root.plugin.state["factor"] = torch.ones(1)
    with pytest.raises(PluginError, match="`state` must be JSON"):
        resumed.state()


def test_a_nested_combination_has_a_state_of_its_own() -> None:
    """And begins with that which it is made with."""
    scorer = combining(growing(growing(X)), {"x": [1.0, 2.0, 3.0]})
    scorer.root.plugin.state = {"factor": 10.0}
    learn(scorer, TWO)
    assert scorer.state() == {"growing": {"factor": 11.0}, "growing/part": {"factor": 1.0}}


@pytest.mark.parametrize("method", ["combine", "total"])
def test_rewards_that_are_not_finite_name_their_plugin(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a combination, and the total of whitened parts."""
    nan, ones = torch.tensor([math.nan, 2.0, 1.0]), torch.ones(3)
    answers: dict[str, Any] = {"combine": CombinedReward(ones, ones, {}), "total": ones}
    answers[method] = nan if method == "total" else CombinedReward(nan, ones, {})
    scorer = combining(INNER, {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
    for name, answer in answers.items():
        monkeypatch.setattr(scorer.root.plugin, name, lambda *given, answer=answer: answer)
    with pytest.raises(PluginError, match=rf"`Doubled.{method}`: return finite rewards"):
        learn(scorer, TWO)
