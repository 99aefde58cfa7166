"""Gold is tracked and never trained on, survives a restart, and counts missing scores as
missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from watched import PYTHON, REWARD_MODEL, STILL, Ran, Watched, by, dies, online, prompts

from alignkit import DataError, MonitorReport, RunFailed
from alignkit.contract.settings import Settings
from alignkit.data.group import read_groups, responses_of
from alignkit.host.registry import Component
from alignkit_plugins.monitors.reward_hacking import Gold, KLBudget
from tests.rows import Said, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

GOLD = """
def reward(completions):
    return [float(sum(c.encode()) % 1009) for c in completions]

def half(completions):
    return [float(len(c)) if sum(c.encode()) % 2 else None for c in completions]

def none(completions):
    return [None for c in completions]
"""
SELF = "warning: gold is the reward itself"
CHECKED: dict[str, Any] = {"scores": GOLD, "iterations": 3, "keep_versions": True}


def gold(reward: Any, **options: Any) -> list[dict[str, Any]]:
    return [{"gold": {"reward": reward, **options}}]


def rows(ran: Ran, iteration: int) -> list[dict[str, Any]]:
    groups = read_groups(ran.folder / "align" / "gold" / f"{iteration:04d}.jsonl")
    pairs = [(group, response) for group in groups for response in group.responses]
    return [{"prompt": group.id, "text": r.text, **r.scores} for group, r in pairs]


def held_out(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return write_rows(folder / "held_out.jsonl", prompts(8)).name


def test_gold_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    """With reward models for both, whose scores are cached; of rollouts, and of held-out prompts."""
    models = {"rm": REWARD_MODEL, "other": {**REWARD_MODEL, "epochs": 2}}
    keys: dict[str, Any] = {"before": models, "reward": "rm", **CHECKED}
    plain = online(tmp_path / "plain", Watched(), **keys)
    assert plain.weights != plain.kept(1)
    file = held_out(tmp_path / "held out")
    for name, options in {"rollouts": {}, "held out": {"prompts": file}}.items():
        watched = online(tmp_path / name, Watched(), monitors=gold("other", **options), **keys)
        assert plain.weights == watched.weights and plain.rollouts() == watched.rollouts()
        assert all("gold" in metrics for metrics in watched.metrics)


def test_gold_on_held_out_prompts_is_scored_with_the_own_reward_as_well(tmp_path: Path) -> None:
    """And a missing score is missing, and not zero."""
    monitors = gold(by("half"), prompts=held_out(tmp_path))
    ran = online(tmp_path, Watched(), monitors=monitors, learning_rate=STILL, **CHECKED)
    unscored = 0
    for number, metrics in enumerate(ran.metrics, 1):
        found = rows(ran, number)
        assert len(found) == 8 * 2 and len({row["prompt"] for row in found}) == 8
        for row in found:
            number = sum(row["text"].encode())
            assert row["gold"] == (len(row["text"]) if number % 2 else None)
            assert row["reward"] == number % 1009
        known = [row["gold"] for row in found if row["gold"] is not None]
        assert metrics["gold"] == pytest.approx(sum(known) / len(known))
        assert metrics["gold_std"] == pytest.approx(np.std(known), rel=1e-5)
        unscored += metrics.get("gold_unscored", 0)
        assert len(known) + metrics.get("gold_unscored", 0) == 16
    assert unscored > 0
    assert rows(ran, 1) != rows(ran, 2)  # other samples of the same policy


def test_gold_on_rollouts_costs_no_samples(tmp_path: Path, said: Said) -> None:
    """The files that are learned from do not know it; without a score there is no mean."""
    ran = online(tmp_path, Watched(), monitors=gold(by("none")), **CHECKED)
    responses = responses_of(ran.rollouts()[0])
    assert {row["text"] for row in rows(ran, 1)} == {response.text for response in responses}
    assert all("gold" not in response.scores for response in responses)
    assert all("gold" not in metrics and metrics["gold_unscored"] == 4 for metrics in ran.metrics)
    assert ran.summary["gold"] == {"best_iteration": 0, "change": None}
    assert SELF not in " ".join(said().split())


def test_what_gold_said_must_be_readable_on_a_restart(tmp_path: Path) -> None:
    keys: dict[str, Any] = {**CHECKED, "monitors": gold(by("half"))}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 3), **keys)
    (tmp_path / "run" / "align" / "gold" / "0001.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"gold/0001.jsonl:1: not valid JSON"):
        online(tmp_path, Watched(), **keys)


def test_gold_that_is_the_reward_is_warned_about(tmp_path: Path, said: Said) -> None:
    online(tmp_path, Watched(), monitors=gold(PYTHON), iterations=1)
    assert SELF in " ".join(said().split())


@pytest.mark.parametrize(
    ("options", "keys", "message"),
    [
        (
            {"stop": True},
            {"rollout": {"async_level": 1}},
            "would judge a policy by what the one before it wrote",
        ),
        (
            {"prompts": "rows"},
            {"environment": "calculator"},
            "cannot be played with an environment",
        ),
        (
            {},
            {"monitors": [Component("monitor", "gold", None, Gold.Options(reward="a"))] * 2},
            "one gold",
        ),
    ],
)
def test_what_does_not_go_with_gold(
    options: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Gold(Gold.Options(reward="length", **options)).check(Settings(**keys))


def test_what_goes_with_gold() -> None:
    held_out = Gold(Gold.Options(reward="length", stop=True, prompts="rows"))
    held_out.check(Settings(rollout={"async_level": 1}))
    gold = Gold(Gold.Options(reward="length"))
    gold.check(Settings(environment="calculator"))
    gold.history = Mock(best=2, **{"fell.return_value": True, "change.return_value": None})
    fell = "gold was best in iteration 2 and has fallen since: None"
    assert gold.finish("").warnings == [fell] and gold.finish("it fell").warnings == []


def test_a_budget_needs_the_kl_of_the_policy_that_learns() -> None:
    """An iteration without groups has none."""
    budget = KLBudget(KLBudget.Options(max=1))
    budget.async_level = 1
    assert budget.observe(1, [], {}) == MonitorReport()
    with pytest.raises(RunFailed, match="the engine returns none"):
        budget.observe(2, [], {"kl": 0.5})
