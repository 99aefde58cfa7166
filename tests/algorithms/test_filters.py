"""Filters: the first-party ones on groups by hand, in a run, and broken ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Filter, Group, Response
from alignkit.cli import main
from alignkit.host.plugins import plugins
from alignkit.testing import ConformanceError, check_filter
from tests.by_hand import asked, scored
from tests.rows import Said, prompts, read_rows, rollouts_of, with_plugin, write_recipe, write_rows


def kept(name: str, groups: Sequence[Group], **options: Any) -> str:
    """y for each group that stays."""
    cls = plugins().get("filter", name).implementation
    check_filter(cls, options, groups=groups)
    return "".join("y" if keep else "n" for keep in cls(cls.Options(**options)).keep(groups))


# A filter, its options, the rewards of each group, and which groups stay
KEPT = yaml.safe_load("""
- [spread, {}, [[1, 1], [0, 1], [0.5, 0.6], [-2], [0, 0, 0.000000001]], nyyny]
- [spread, {least: 1}, [[1, 1], [0, 1], [0.5, 0.6], [-2, 1, 0], [2, 1.1]], nynyn]
- [reward_range, {low: 0.25, high: 0.75}, [[0, 0], [0, 0.5], [0.5, 1], [1, 1]], nyyn]
- [reward_range, {low: 0.3}, [[0, 0], [0, 0.5], [0.5, 1], [1, 1]], nnyy]
- [reward_range, {high: 0.25}, [[0, 0], [0, 0.5], [0.5, 1], [1, 1]], yynn]
- [reward_range, {low: 1, high: 1}, [[0, 0], [0, 0.5], [0.5, 1], [1, 1]], nnny]
""")


@pytest.mark.parametrize(("name", "options", "rewards", "stays"), KEPT)
def test_filters_of_rewards(
    name: str, options: dict[str, float], rewards: list[list[float]], stays: str
) -> None:
    """Limits belong to the range."""
    assert kept(name, scored(rewards), **options) == stays


def test_not_truncated_allows_a_share() -> None:
    groups = []
    for cut in (0, 1, 2):
        responses = [Response("x", scores={"reward": 1.0}, truncated=i < cut) for i in range(2)]
        groups.append(Group(asked(str(cut)), tuple(responses)))
    assert kept("not_truncated", groups) == "yyn"
    assert kept("not_truncated", groups, most=0) == "ynn"


OTHERWISE = cycle([True, False])


def answering(keep: Any) -> type[Filter]:
    return type("Broken", (Filter,), {"keep": lambda self, groups: keep(groups)})


@pytest.mark.parametrize(
    ("cls", "named"),
    [
        (answering(lambda groups: [1.0] * len(groups)), "true or false, not 1.0"),
        (answering(lambda groups: [True] * (len(groups) - 1)), "a list of 4"),
        (answering(lambda groups: None), "a list of 4"),
        (answering(lambda groups: [True] + [False] * (len(groups) - 1)), "order of the groups"),
        (answering(lambda groups: [next(OTHERWISE)] * 4), "a second call"),
        (str, "subclass of alignkit.Filter"),
    ],
)
def test_broken_filters_are_reported(cls: Any, named: str) -> None:
    with pytest.raises(ConformanceError, match=named):
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
ALIGN = """
algorithm: rloo
prompts: prompts.jsonl
reward: {python: {path: reward.py, function: reward}}
rollout: {samples_per_prompt: 2, max_new_tokens: 5}
iterations: 2
prompts_per_iteration: 12
"""
TEXTS = [f"{a} {b}" for a in ("bread", "old", "the", "good") for b in ("house", "people", "bake")]


def run(folder: Path, filters: Any, code: int = 0, command: str = "run", **keys: Any) -> list[Any]:
    """(metrics, groups) of two iterations."""
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    write_rows(folder / "prompts.jsonl", prompts(TEXTS))
    rollout = keys.pop("rollout", {})
    stage = yaml.safe_load(ALIGN) | keys
    stage["rollout"] |= {"filters": filters} | rollout
    recipe = write_recipe(folder, {"align": stage})
    out = ["--out", str(folder / "run")] if command == "run" else []
    plugin = with_plugin(folder / "plugin.py", PLUGIN)
    assert main([command, str(recipe), *plugin, *out]) == code
    if code or not out:
        return []
    align = folder / "run" / "align"
    rollouts = rollouts_of(align)
    assert all(len(groups) == 12 for groups in rollouts)  # all samples stay in the files
    return list(zip(read_rows(align / "metrics.jsonl"), rollouts, strict=True))


@pytest.mark.silent_bug(
    "sampling: filters",
    "A filter leaves fewer groups than the batch should have, without a word.",
    "Metrics say how many each filter left out.",
    "areal-project/AReaL#450",
)
def test_a_run_learns_from_what_is_left_and_counts_the_rest(tmp_path: Path) -> None:
    """Each filter sees what the one before it kept, two of one name are told apart by their places,
    and what was left out is not replayed.
    """
    filters: dict[str, Callable[[Group], bool]] = {
        "filtered/reward_range": lambda group: mean(group) >= 0.4,
        "filtered/even": lambda group: len(group.responses[0].text) % 2 == 0,
        "filtered/reward_range_3": lambda group: mean(group) <= 1.4,
    }
    left: list[Group] = []
    named = [{"reward_range": {"low": 0.4}}, "even", {"reward_range": {"high": 1.4}}]
    for metrics, groups in run(tmp_path, named, algorithm="replays"):
        assert (metrics["earlier"], metrics["odd"]) == (len(left), 0)
        left = groups
        for name, keeps in filters.items():
            before, left = left, list(filter(keeps, left))
            assert metrics[name] == len(before) - len(left) > 0


def mean(group: Group) -> float:
    return sum(response.reward for response in group.responses) / len(group.responses)


@pytest.mark.parametrize(
    ("rollout", "reward", "named"),
    [
        ({"filters": ["spread"]}, None, "reads rewards, but no_reward learns from none"),
        ({"filters": ["spread"]}, "length", ""),
        ({"filters": ["not_truncated"]}, None, ""),
        ({"missing_eos_penalty": 0.5}, None, "from rewards, and no_reward learns from none"),
        ({"missing_eos_penalty": 0.5}, "length", "from rewards, and no_reward learns from none"),
    ],
)
def test_rewards_that_a_stage_does_not_have(
    tmp_path: Path,
    said: Said,
    rollout: dict[str, Any],
    reward: str | None,
    named: str,
) -> None:
    code = 2 if named else 0
    run(tmp_path, [], code, "check", algorithm="no_reward", reward=reward, rollout=rollout)
    assert named in said()


def test_an_iteration_without_groups_is_idle_and_says_why(tmp_path: Path, said: Said) -> None:
    run(tmp_path, [{"reward_range": {"low": 99}}], 1)
    assert "left out every group (filtered/reward_range)" in said()
