"""Filters: the first-party ones on groups by hand, in a run, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Filter, Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_filter


def group(*scores: float | None, cut: int = 0) -> Group:
    """Scored samples, of which the first `cut` are truncated."""
    responses = [
        Response(text="x", scores={"reward": s}, truncated=i < cut) for i, s in enumerate(scores)
    ]
    return Group((Message(role="user", content=f"{scores}"),), tuple(responses))


def kept(name: str, groups: Sequence[Group], **options: Any) -> list[bool]:
    cls = plugins().get("filter", name).implementation
    check_filter(cls, options, groups=groups)
    return list(cls(cls.Options(**options)).keep(groups))


def test_spread_leaves_out_groups_of_equal_rewards() -> None:
    groups = [group(1, 1), group(0, 1), group(0.5, 0.6), group(-2), group(0, 0, 1e-9)]
    assert kept("spread", groups) == [False, True, True, False, True]


def test_spread_keeps_what_a_combination_tells_apart() -> None:
    """GDPO's rewards may differ where the raw ones do not, and cancel where they do."""

    def both(raw: Sequence[float], learned: Sequence[float]) -> Group:
        scores = [{"reward": r, "learned_reward": x} for r, x in zip(raw, learned, strict=True)]
        return Group(
            (Message(role="user", content="x"),),
            tuple(Response(text="x", scores=s) for s in scores),
        )

    groups = [
        both((0, 0), (-1, 1)),
        both((0, 1), (0, 0)),
        both((0, 0), (2, 2)),
        both((0, 3), (-1, 1)),
    ]
    assert kept("spread", groups) == [True, True, False, True]


def test_not_truncated_allows_a_share() -> None:
    groups = [group(1, 2, cut=0), group(1, 2, cut=1), group(1, 2, cut=2)]
    assert kept("not_truncated", groups) == [True, True, False]
    assert kept("not_truncated", groups, most=0) == [True, False, False]


def test_reward_range_includes_its_limits() -> None:
    groups = [group(0, 0), group(0, 0.5), group(0.5, 1), group(1, 1)]
    assert kept("reward_range", groups, low=0.25, high=0.75) == [False, True, True, False]
    assert kept("reward_range", groups, low=0.3) == [False, False, True, True]
    assert kept("reward_range", groups, high=0.25) == [True, True, False, False]


@pytest.mark.parametrize("options", [{}, {"low": 1, "high": 0}])
def test_a_range_needs_limits_in_order(options: dict[str, float]) -> None:
    with pytest.raises(ConformanceError, match="is refused"):
        check_filter(plugins().get("filter", "reward_range").implementation, options)


# Broken ones


class Filters(Filter):
    def keep(self, groups: Sequence[Group]) -> Any:
        return [self.one(each) for each in groups]

    def one(self, group: Group) -> Any:
        return True


class Numbers(Filters):
    def one(self, group: Group) -> Any:
        return 1.0


class TooFew(Filters):
    def keep(self, groups: Sequence[Group]) -> Any:
        return [True] * (len(groups) - 1)


class Nothing(Filters):
    def keep(self, groups: Sequence[Group]) -> Any:
        return None


class First(Filters):
    def keep(self, groups: Sequence[Group]) -> Any:
        return [index == 0 for index in range(len(groups))]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Numbers, "[.]keep`: return true or false, not 1.0"),
        (TooFew, "[.]keep`: return a list of 4, each true or false, not .True, True, True."),
        (Nothing, "[.]keep`: return a list of 4, each true or false, not None"),
        (First, "the order of the groups changes what becomes of group 0"),
        (str, "must be a subclass of alignkit.Filter"),
    ],
)
def test_broken_filters_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_filter(cls)


# In a run

PLUGIN = """
from alignkit import *

class Even(Filter):
    def keep(self, groups):
        return [len(group.responses[0].text) % 2 == 0 for group in groups]

class Replays(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(replay=True)
    def select(self, groups, context):
        earlier = [group for groups in context.replay() for group in groups]
        odd = sum(len(group.responses[0].text) % 2 for group in earlier)
        context.log(earlier=len(earlier), odd=odd)
        return groups
    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs))

class NoReward(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(reward=False)
    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs))

@hookimpl
def register(add):
    add("filter", "even", Even)
    add("algorithm", "no_reward", NoReward)
    add("algorithm", "replays", Replays)
"""
REWARD = "def reward(completions):\n    return [float(len(c) % 3) for c in completions]\n"
REWARD += "def twice(completions):\n    return [float(len(c) % 3) * 2 for c in completions]\n"
REWARD += "def less(completions):\n    return [-float(len(c) % 3) for c in completions]\n"


def run(
    folder: Path, filters: Any, expected: int = 0, command: str = "run", **keys: Any
) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    words = ["bread", "old friend", "the house", "good people", "how to bake", "please"]
    write_groups(
        folder / "prompts.jsonl", [Group((Message(role="user", content=text),)) for text in words]
    )
    align = {
        "algorithm": "rloo",
        "prompts": "prompts.jsonl",
        "reward": {"python": {"path": "reward.py", "function": "reward"}},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 5, "filters": filters},
        "iterations": 2,
        "prompts_per_iteration": 6,
        **keys,
    }
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    recipe = {
        "model": model,
        "stages": {"align": {key: value for key, value in align.items() if value is not None}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = ["--out", str(folder / "run")] if command == "run" else []
    assert (
        main([command, str(folder / "recipe.yaml"), "--plugin", str(folder / "plugin.py"), *out])
        == expected
    )
    metrics = folder / "run" / "align" / "metrics.jsonl"
    return (
        [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        if metrics.exists()
        else []
    )


@pytest.mark.silent_bug(
    "sampling: filters",
    "A filter leaves fewer groups than the batch should have, without a word.",
    "Metrics say how many each filter left out.",
    "areal-project/AReaL#450",
)
def test_a_run_learns_from_what_is_left_and_counts_the_rest(tmp_path: Path) -> None:
    """Each filter sees what the one before it kept; all samples stay in the files of rollouts."""
    lines = run(tmp_path, ["spread", "even"])
    total = {"spread": 0, "even": 0}
    for number, line in enumerate(lines, 1):
        groups = read_groups(tmp_path / "run" / "align" / "rollouts" / f"{number:04d}.jsonl")
        assert len(groups) == 6
        differ = [
            g for g in groups if g.responses[0].scores["reward"] != g.responses[1].scores["reward"]
        ]
        even = [g for g in differ if len(g.responses[0].text) % 2 == 0]
        assert line["filtered/spread"] == 6 - len(differ) and line["filtered/even"] == len(
            differ
        ) - len(even)
        total["spread"] += 6 - len(differ)
        total["even"] += len(differ) - len(even)
    assert total["spread"] > 0 and total["even"] > 0


def test_filters_of_one_name_are_counted_by_their_places(tmp_path: Path) -> None:
    filters = [{"reward_range": {"low": 0.4}}, {"reward_range": {"high": 1.4}}]
    lines = run(tmp_path, filters)
    for number, line in enumerate(lines, 1):
        groups = read_groups(tmp_path / "run" / "align" / "rollouts" / f"{number:04d}.jsonl")
        means = [sum(response.reward for response in group.responses) / 2 for group in groups]
        assert line["filtered/reward_range"] == sum(mean < 0.4 for mean in means)
        assert line["filtered/reward_range_2"] == sum(mean > 1.4 for mean in means)
    assert any(line["filtered/reward_range"] and line["filtered/reward_range_2"] for line in lines)


def test_what_was_filtered_is_not_replayed(tmp_path: Path) -> None:
    """The files have all samples; what a filter leaves out is not learned from later, either."""
    first, second = run(tmp_path, ["even"], algorithm="replays")
    assert first["filtered/even"] > 0 and first["earlier"] == 0
    assert second["odd"] == 0 and second["earlier"] == 6 - first["filtered/even"] > 0


def test_an_iteration_without_groups_is_idle_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [{"reward_range": {"low": 99}}], 1)
    said = capsys.readouterr().err
    assert "filters and the algorithm left out every group (filtered/reward_range)" in said


def test_a_filter_of_rewards_needs_a_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for filters, expected in (
        (["spread"], 2),
        ([{"reward_range": {"low": 1}}], 2),
        (["not_truncated"], 0),
    ):
        run(tmp_path, filters, expected, "check", algorithm="no_reward", reward=None)
        assert ("reads rewards, but no_reward learns from none" in capsys.readouterr().err) == bool(
            expected
        )


def test_an_unknown_filter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ["spred"], 2, "check")
    said = capsys.readouterr().err
    assert "no filter 'spred'" in said and "spread" in said
