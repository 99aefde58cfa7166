"""Rewards of rollouts: what cannot be scored is left out, and what was cut off pays the penalty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from tests.rows import write_recipe

PROMPT = (Message(role="user", content="how are you"),)


def response(score: float | None, truncated: bool = False) -> Response:
    return Response(text=str(score), truncated=truncated)


def scorer() -> Rewards:
    """Scores a response by the number it consists of."""

    def scores(name: str, groups: list[Group]) -> list[float | None]:
        texts = [response.text for group in groups for response in group.responses]
        return [None if text == "None" else float(text) for text in texts]

    context: Any = SimpleNamespace(models=ByRole(scores=scores), stage="")
    return Rewards(RewardSpec("stage", "liked"), context)


def learn(rewards: Rewards, groups: Sequence[Group], penalty: float = 0.0) -> RewardTable:
    """As an iteration does that learns from all that has a score."""
    return rewards.combine(rewards.ask(groups), penalty)


def learned(table: RewardTable) -> tuple[list[float], list[float]]:
    """The rewards that are learned from, and the raw ones."""
    return scores_of(table.groups, "learned_reward").tolist(), scores_of(
        table.groups, "reward"
    ).tolist()


GROUPS = [
    Group(PROMPT, (response(1.0), response(None), response(3.0, truncated=True)), id="a"),
    Group(PROMPT, (response(None),), id="b"),
]


@pytest.mark.silent_bug(
    "rewards: missing scores",
    "A missing reward counts as 0 in the baseline of its group.",
    "The response is left out and counted.",
    "huggingface/trl#5902",
)
def test_responses_without_a_score_are_left_out() -> None:
    table = learn(scorer(), GROUPS)
    assert [group.id for group in table.groups] == ["a"] and len(table.groups[0].responses) == 2
    assert table.summary()["unscored"] == 2
    assert learned(table) == ([1.0, 3.0], [1.0, 3.0])
    assert [len(group.responses) for group in table.scored] == [3, 1]
    nothing = learn(scorer(), GROUPS[1:])
    assert nothing.groups == [] and int(nothing.raw.isnan().sum()) == 1


def test_the_penalty_is_in_every_reward_and_in_no_component() -> None:
    """One meaning of `reward`: in what is learned, in the files of rollouts, and in the metrics."""
    table = learn(scorer(), GROUPS, penalty=0.5)
    assert learned(table) == ([1.0, 2.5], [1.0, 2.5])
    scores = [r.scores for r in table.scored[0].responses]
    assert scores == [
        {"liked": 1.0, "reward": 1.0},
        {"liked": None, "reward": None},
        {"liked": 3.0, "reward": 2.5},
    ]
    assert [r.scores["learned_reward"] for r in table.groups[0].responses] == [1.0, 2.5]
    means = {"reward": 1.75, "score/liked": 2.0, "missing_eos_penalty": 0.25}
    assert table.summary().items() >= means.items()
    assert "missing_eos_penalty" not in learn(scorer(), GROUPS).summary()


def test_a_model_in_several_places_of_an_expression_scores_once() -> None:
    asked: list[str] = []

    def scores(name: str, groups: Sequence[Group]) -> list[float | None]:
        asked.append(name)
        return [float(len(name)) for group in groups for _ in group.responses]

    context: Any = SimpleNamespace(models=ByRole(scores=scores), stage="")
    one, other = RewardSpec("stage", "liked"), RewardSpec("folder", "liked/by/others")
    together = Rewards(
        doubled("both", left=one, right=doubled("inner", again=one, other=other)), context
    )
    assert learn(together, GROUPS[:1]).raw.tolist() == [5.0 + 5.0 + 15.0] * 3
    assert asked == ["liked", "liked/by/others"]
    together.score(GROUPS[:1])
    assert asked[2:] == asked[:2]


def combination(folder: Path, reward: Any) -> Rewards:
    """The reward of a recipe, without models."""
    reward = yaml.safe_load(reward) if isinstance(reward, str) else reward
    stage = {"algorithm": "rloo", "prompts": "prompts.jsonl", "reward": reward}
    recipe = load_recipe(write_recipe(folder, {"align": stage}))
    settings = recipe.stages["align"].settings
    assert settings is not None and settings.reward is not None
    context: Any = SimpleNamespace(models=None, stage="", folder=folder)
    return Rewards(settings.reward, context)


LLAMA2 = "{llama2: {helpful: length, safety: length}}"


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("llama2: {safety: length, helpful: LLAMA2}", "'llama2' compares raw scores"),
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
    summed = "weighted_sum: {rewards: {judged: {RLAIF}, w: length}, weights: {judged: 1, w: 1}}"
    summed = summed.replace("RLAIF", rlaif)
    within = [combination(tmp_path, each).within_group for each in (rlaif, summed, "length")]
    assert within == [True, True, False]


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    rewards = combining(RewardSpec("stage", "liked"), {"liked": [math.inf]})
    with pytest.raises(RunFailed, match=r"reward 'liked': return a finite number.*, not "):
        learn(rewards, [Group(PROMPT, (Response(text="a"),), id="a")])


# Combinations


class Doubled(RewardCombination):
    """The sum of its parts; what gradient methods see is twice as much and shifted, as after
    whitening.
    """

    whitens = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(alignkit.Options())

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        return CombinedReward(
            self.total(groups, components), torch.stack(list(components.values())).sum(dim=0), {}
        )

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return 2 * torch.stack(list(components.values())).sum(dim=0) - 7


def doubled(name: str, **parts: RewardSpec) -> RewardSpec:
    registration = Registration(name, lambda options: Doubled())
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    return RewardSpec("combine", name, component, parts, whitens=True)


def combining(spec: RewardSpec, scores: Mapping[str, list[float | None]]) -> Rewards:
    """The stages' scores are given, one per response."""
    models = ByRole(scores=lambda name, groups: scores[name])
    context: Any = SimpleNamespace(models=models, folder=Path(), load=None, stage="")
    return Rewards(spec, context)


BOTH = doubled("both", first=RewardSpec("stage", "x"), second=RewardSpec("stage", "y"))
TWO = [
    Group(PROMPT, (Response(text="a"), Response(text="b")), id="a"),
    Group(PROMPT, (Response(text="c"),), id="b"),
]


X, Y = RewardSpec("stage", "x"), RewardSpec("stage", "y")
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
    scored = learn(combining(spec, {"x": x, "y": [0.5, 0.5, 0.5]}), TWO)
    assert [response.scores["reward"] for response in responses_of(scored.scored)] == raw
    assert learned(scored) == (learned_from, [value for value in raw if value is not None])


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


def counts(table: RewardTable) -> dict[str, Any]:
    """Responses without a score, in total and by part."""
    summary = table.summary().items()
    return {name: count for name, count in summary if name.startswith(("unscored", "not_"))}


@pytest.mark.silent_bug(
    "rewards: does not apply",
    "A reward that abstains makes all advantages of the batch NaN, or its prompts score 0.",
    "A part that does not apply is left out of the sum and counted.",
    "modelscope/ms-swift#8123",
)
def test_a_part_that_does_not_apply_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    scored = learn(combination(tmp_path, PARTS), tasks("maths", "code", "x"))
    assert scored.raw.tolist() == [1.0, 1.0, 0.0]
    assert counts(scored) == {"unscored": 0, "unscored/maths": 2, "unscored/code": 2}
    nested = learn(combination(tmp_path, NESTED), tasks("maths", "code"))
    assert nested.raw.tolist() == [14.0, 4.0]


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
    assert [response.text for response in responses_of(table.groups)] == ["a"]
    assert counts(table) == {"unscored": 2, "unscored/first": 1, "unscored/second": 1}


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
        return (self.state.get("factor", 0.0) + 1.0) * torch.stack(list(components.values())).sum(
            dim=0
        )


def growing(whitened: bool = False) -> Rewards:
    registration = Registration("growing", lambda options: Growing(None), plugin="x")
    component = Component("reward", "x", registration, None)  # type: ignore[arg-type]
    part = (
        doubled("inner", first=RewardSpec("stage", "x")) if whitened else RewardSpec("stage", "x")
    )
    return combining(
        RewardSpec("combine", "growing", component, {"part": part}), {"x": [1.0, None, 3.0]}
    )


@pytest.mark.parametrize("whitened", [False, True])
def test_a_combination_remembers_once_an_iteration(whitened: bool) -> None:
    scorer = growing(whitened)
    for iteration in (1.0, 2.0, 3.0):
        scored = learn(scorer, TWO)
        assert learned(scored)[1] == [iteration, 3 * iteration]
        assert scored.metrics == {"reward/factor": iteration}
        assert scorer.state() == {"growing": {"factor": iteration}}
    scorer.score(TWO)  # an evaluation, or a replay
    assert scorer.state() == {"growing": {"factor": 3.0}}


def test_a_combination_continues_from_a_checkpoint() -> None:
    """And begins with the state that it is made with."""
    first, resumed = growing(), growing()
    first.root.plugin.state = {"factor": 10.0}
    assert learned(learn(first, TWO))[1] == [11.0, 33.0]
    resumed.restore(json.loads(json.dumps(first.state())))
    assert resumed.state() == {"growing": {"factor": 11.0}}
    assert learned(learn(resumed, TWO)) == learned(learn(first, TWO))
    resumed.root.plugin.state["factor"] = torch.ones(1)
    with pytest.raises(PluginError, match="`state` must be JSON"):
        resumed.state()


def test_a_nested_combination_has_a_state_of_its_own() -> None:
    inner, outer = growing().root.spec, growing().root.spec
    spec = replace(outer, children={"part": inner})
    scorer = combining(spec, {"x": [1.0, 2.0, 3.0]})
    learn(scorer, TWO)
    assert scorer.state() == {"growing": {"factor": 1.0}, "growing/part": {"factor": 1.0}}


def test_rewards_that_are_not_finite_name_their_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a combination, and the total of whitened parts."""
    nan = torch.tensor([math.nan, 2.0, 1.0])
    finite = torch.tensor([0.0, 2.0, 1.0])
    scorer = combining(INNER, {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
    for combined, total in ((nan, finite), (finite, nan)):
        answers = {
            "combine": lambda groups, parts, value=combined: CombinedReward(value, finite, {}),
            "total": lambda groups, parts, value=total: value,
        }
        for method, answer in answers.items():
            monkeypatch.setattr(scorer.root.plugin, method, answer)
        with pytest.raises(PluginError, match=r"`Doubled.\w+`: return finite rewards"):
            learn(scorer, TWO)
