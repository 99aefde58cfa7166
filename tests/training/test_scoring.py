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
from alignkit.data.group import Origin, responses_of
from alignkit.errors import PluginError
from alignkit.host.registry import Component, Registration
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.training.rewards import Rewards
from alignkit.training.rollouts import Rollouts, by_prompt
from alignkit_plugins.ai_feedback.rlaif import RLAIF
from tests.by_hand import scored
from tests.rows import write_recipe

PROMPT = (Message(role="user", content="how are you"),)


def combining(spec: RewardSpec, scores: Mapping[str, Sequence[float | None]]) -> Rewards:
    """The stages' scores are given, one per response."""
    models = ByRole(scores=lambda name, groups: scores[name])
    context: Any = SimpleNamespace(models=models, folder=Path(), load=None, stage="")
    return Rewards(spec, context)


def learn(rewards: Rewards, groups: Sequence[Group], **options: Any) -> Rollouts:
    """As an iteration does that learns from all that has a score."""
    return rewards.combine(rewards.ask(groups), **options)


def learned(table: Rollouts) -> tuple[list[float], list[float]]:
    """The rewards that are learned from, and those that are shown."""
    assert table.learned is not None and table.reward is not None
    return table.learned[table.keep].tolist(), table.reward[table.keep].tolist()


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
    assert [group.id for group in table.kept] == ["a"]
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
    reported = learn(scorer, GROUPS, whiten=True, learns=False)
    assert [response.reward for response in reported.kept[0].responses[::2]] == [1.0, 3.0]
    assert reported.learned is None and len(reported.kept) == 2
    assert learn(combining(X, {"x": [0.1]}), GROUPS[1:]).reward.tolist() == [0.1]
    nothing = learn(combining(X, {"x": [None]}), GROUPS[1:], whiten=True)
    assert nothing.kept == [] and int(nothing.reward.isnan().sum()) == 1


@pytest.mark.silent_bug(
    "rewards: whitening",
    "Rewards are whitened over the groups that a filter kept, or the penalty for a missing end with "
    "them, so that it counts more in some iterations than in others.",
    "They are whitened in float64 over all scored responses; then the penalty is subtracted.",
)
def test_whitening_sees_all_that_has_a_score_and_the_penalty_comes_after_it() -> None:
    table = learn(combining(X, {"x": [1.0, 4.0, 7.0, None]}), GROUPS, whiten=True, penalty=0.5)
    assert learned(table) == (pytest.approx([-1.0, 0.0, 1.0 - 0.5]), [1.0, 4.0, 6.5])
    assert table.learned.dtype == torch.float64
    assert [response.reward for response in responses_of(table.kept)] == [1.0, 4.0, 6.5]
    whole = learn(combining(X, {"x": [1.0, 4.0, 9.0, 7.0]}), GROUPS, whiten=True)
    before = learned(whole)[0]
    whole.keep_groups([False, True])  # a filter
    assert learned(whole) == (before[3:], [7.0]) and [group.id for group in whole.kept] == ["b"]
    assert learned(learn(combining(X, {"x": [2.0]}), GROUPS[1:], whiten=True)) == ([0.0], [2.0])


def test_rewards_by_kind_of_prompt_have_prompts_as_their_unit() -> None:
    """A prompt's kind is its column, or else its file; with one kind there is nothing to tell."""

    def group(*rewards: float, x: float | None, **facts: Any) -> Group:
        scores = [{"reward": reward, "x": x} for reward in rewards]
        return Group(PROMPT, tuple(Response(scores={**one}) for one in scores), **facts)

    groups = [
        group(1.0, 3.0, x=2.0, meta={"kind": "harmful"}),
        group(5.0, 5.0, x=3.0, meta={"kind": "harmful"}),
        group(9.0, x=None, origin=Origin("data/ordinary.jsonl", 1)),
    ]
    found = by_prompt(groups, ["x"])
    assert found == pytest.approx(
        {
            "reward": 16 / 3,
            "reward_std_within": 0.5,
            "reward_se": 3.51188458 / math.sqrt(3),
            "kind/harmful/reward_se": 1.5,
            "kind/harmful/reward": 3.5,
            "kind/harmful/prompts": 2,
            "kind/ordinary/prompts": 1,
            "kind/harmful/score/x": 2.5,
            "kind/ordinary/reward": 9.0,
        }
    )
    assert by_prompt(groups[2:], ["x"]) == {"reward": 9.0}


def test_a_model_in_several_places_of_an_expression_scores_once() -> None:
    scores = Mock(return_value=[1.0, 2.0, 3.0])
    context: Any = SimpleNamespace(models=ByRole(scores=scores), stage="")
    together = Rewards(doubled("both", left=X, right=doubled("inner", again=X)), context)
    assert (
        learn(together, GROUPS[:1]).reward.tolist() == [6.0, 12.0, 18.0] and scores.call_count == 1
    )


def combination(folder: Path, reward: str) -> Rewards:
    """The reward of a recipe, without models."""
    stage = {"algorithm": "rloo", "prompts": "prompts.jsonl", "reward": yaml.safe_load(reward)}
    settings: Any = load_recipe(write_recipe(folder, {"align": stage})).stages["align"].settings
    context: Any = SimpleNamespace(models=None, stage="", folder=folder)
    return Rewards(settings.reward, context)


def test_a_part_cannot_have_the_name_of_the_whole(tmp_path: Path) -> None:
    """Its scores would be overwritten."""
    with pytest.raises(RecipeError, match="cannot be named"):
        combination(tmp_path, "weighted_sum: {rewards: {reward: length}, weights: {reward: 1}}")


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
    """Twice the sum of its parts."""

    def __init__(self) -> None:
        super().__init__(alignkit.Options())

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        groups[0].meta["changed"] = True  # of a copy
        return CombinedReward(2 * sum(components.values()))  # type: ignore[arg-type]


def doubled(name: str, **parts: RewardSpec) -> RewardSpec:
    registration = Registration(name, lambda options: Doubled())
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    return RewardSpec("combine", name, component, parts)


BOTH = doubled("both", first=X, second=Y)
TWO = scored([[None, None], [None]])
INNER = doubled("outer", inner=doubled("inner", first=X), second=Y)


@pytest.mark.parametrize(
    ("spec", "x", "reward"),
    [
        (BOTH, [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]),
        (INNER, [1.0, 2.0, 3.0], [5.0, 9.0, 13.0]),
        # A response that lacks a part has no score: zero would be a score like others.
        (BOTH, [1.0, None, 3.0], [3.0, None, 7.0]),
    ],
    ids=["both", "nested", "one lacks a part"],
)
def test_a_combination_makes_one_number_of_the_scores_of_its_parts(
    spec: RewardSpec, x: list[float | None], reward: list[float | None]
) -> None:
    table = learn(combining(spec, {"x": x, "y": [0.5, 0.5, 0.5]}), TWO)
    assert [response.scores["reward"] for response in responses_of(table.scored)] == reward
    present = [value for value in reward if value is not None]
    assert learned(table) == (present, present)
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
    assert table.reward.tolist() == [1.0, 1.0, 0.0] and rewards.state() == {}
    counts = {"unscored": 0, "unscored/maths": 2, "unscored/code": 2, "score/code": 2.0}
    assert table.summary().items() >= counts.items()
    nested = learn(combination(tmp_path, NESTED), tasks("maths", "code"))
    assert nested.reward.tolist() == [14.0, 4.0] and list(nested.parts) == ["both/maths", "c"]


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
    assert [response.text for response in responses_of(table.kept)] == ["0.0"]
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
        factor = self.state["factor"] = self.state.get("factor", 0.0) + 1.0
        return CombinedReward(factor * components["part"], {"factor": factor})


def growing(part: RewardSpec) -> RewardSpec:
    registration = Registration("growing", lambda options: Growing(None), plugin="x")
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    return RewardSpec("combine", "growing", component, {"part": part})


def test_a_combination_remembers_once_an_iteration_and_continues() -> None:
    """Also if it is asked twice, because too few groups were left; and never what only reports."""
    scorer, resumed = (combining(growing(X), {"x": [1.0, None, 3.0]}) for _ in range(2))
    for iteration in (1.0, 2.0, 3.0):
        learn(scorer, TWO, learns=False)
        table = learn(scorer, TWO)
        scorer.combine(table)
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


def test_rewards_that_are_not_finite_name_their_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = combining(INNER, {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
    endless = CombinedReward(torch.tensor([math.inf, 2.0, 1.0]))
    monkeypatch.setattr(scorer.root.plugin, "combine", lambda *given: endless)
    with pytest.raises(PluginError, match=r"`Doubled\.combine`: return finite rewards"):
        learn(scorer, TWO)
