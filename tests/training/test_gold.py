"""Gold is tracked and never trained on, survives a restart, and counts missing scores as
missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from watched import PYTHON, STILL, Ran, Watched, dies, online, prompts, reward_model

from alignkit import DataError
from alignkit.data.group import read_groups
from alignkit.registry import Component
from alignkit.settings import Settings
from alignkit_plugins.monitors.reward_hacking import Gold
from tests.rows import Said, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

GOLD = """
def reward(completions):
    return [float(sum(c.encode()) % 1009) for c in completions]

def gold(completions):
    return [float(len(c)) for c in completions]

def half(completions):
    return [float(len(c)) if sum(c.encode()) % 2 else None for c in completions]

def none(completions):
    return [None for c in completions]
"""
SELF = "warning: gold is the reward itself"
CHECKED: dict[str, Any] = {"scores": GOLD, "iterations": 3, "keep_versions": True}


def by(function: str) -> dict[str, Any]:
    return {"python": {"path": "reward.py", "function": function}}


def gold(reward: Any, **options: Any) -> list[dict[str, Any]]:
    return [{"gold": {"reward": reward, **options}}]


def rows(ran: Ran, iteration: int) -> list[dict[str, Any]]:
    groups = read_groups(ran.folder / "align" / "gold" / f"{iteration:04d}.jsonl")
    return [
        {"prompt": group.id, "text": r.text, **r.scores}
        for group in groups
        for r in group.responses
    ]


def held_out(folder: Path, count: int = 3) -> str:
    folder.mkdir(exist_ok=True)
    return write_rows(folder / "held_out.jsonl", prompts(8)[8 - count :]).name


def test_gold_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    """With reward models for both, whose scores are cached; of rollouts, and of held-out prompts."""
    models = {"rm": reward_model(1), "other": reward_model(2)}
    keys: dict[str, Any] = {"before": models, "reward": "rm", **CHECKED}
    plain = online(tmp_path / "plain", Watched(), **keys)
    assert plain.weights != plain.kept(1)
    file = held_out(tmp_path / "held out")
    for name, options in {"rollouts": {}, "held out": {"prompts": file}}.items():
        watched = online(tmp_path / name, Watched(), monitors=gold("other", **options), **keys)
        assert plain.weights == watched.weights and plain.rollouts() == watched.rollouts()
        assert all("gold" in metrics for metrics in watched.metrics)


def test_gold_on_held_out_prompts_is_scored_with_the_own_reward_as_well(tmp_path: Path) -> None:
    monitors = gold(by("gold"), prompts=held_out(tmp_path))
    ran = online(tmp_path, Watched(), monitors=monitors, learning_rate=STILL, **CHECKED)
    for number, metrics in enumerate(ran.metrics, 1):
        found = rows(ran, number)
        assert len(found) == 3 * 2 and len({row["prompt"] for row in found}) == 3
        for row in found:
            assert row["gold"] == len(row["text"])
            assert row["reward"] == sum(row["text"].encode()) % 1009
        assert metrics["gold"] == pytest.approx(sum(row["gold"] for row in found) / 6)
    assert rows(ran, 1) != rows(ran, 2)  # other samples of the same policy


def test_gold_on_rollouts_costs_no_samples(tmp_path: Path, said: Said) -> None:
    """And the files that are learned from do not know it."""
    ran = online(tmp_path, Watched(), monitors=gold(by("gold")), **CHECKED)
    responses = [response for group in ran.rollouts()[0] for response in group.responses]
    assert {row["text"] for row in rows(ran, 1)} == {response.text for response in responses}
    assert all("gold" not in r.scores and r.reward != len(r.text) for r in responses)
    assert SELF not in " ".join(said().split())


def test_missing_scores_are_missing_and_not_zero(tmp_path: Path) -> None:
    """Of half of the samples, and of all: then there is no mean."""
    monitors = gold(by("half"), prompts=held_out(tmp_path, 8))
    ran = online(tmp_path, Watched(), monitors=monitors, **CHECKED)
    found = [row["gold"] for row in rows(ran, 1)]
    known = [score for score in found if score is not None]
    assert 0 < len(known) < len(found)
    assert ran.metrics[0]["gold"] == pytest.approx(sum(known) / len(known))
    assert ran.metrics[0]["gold_unscored"] == len(found) - len(known)
    ran = online(tmp_path / "none", Watched(), monitors=gold(by("none")), **CHECKED)
    assert all("gold" not in metrics and metrics["gold_unscored"] == 4 for metrics in ran.metrics)
    assert ran.summary["gold"] == {"best_iteration": 0, "change": None}


def test_gold_that_is_the_reward_is_warned_about(tmp_path: Path, said: Said) -> None:
    online(tmp_path, Watched(), monitors=gold(PYTHON), iterations=1)
    assert SELF in " ".join(said().split())


@pytest.mark.parametrize(
    ("options", "keys", "message"),
    [
        (
            {"stop": True},
            {"rollout": {"ahead": 1}},
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


def test_what_gold_said_must_be_readable_on_a_restart(tmp_path: Path) -> None:
    keys: dict[str, Any] = {**CHECKED, "monitors": gold(by("gold"))}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 3), **keys)
    (tmp_path / "run" / "align" / "gold" / "0001.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"gold/0001.jsonl:1: not valid JSON"):
        online(tmp_path, Watched(), **keys)
