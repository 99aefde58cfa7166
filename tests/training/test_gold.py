"""Gold is tracked and never trained on, survives a restart, and counts missing scores as
missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from watched import PYTHON, STILL, Ran, Watched, online, prompts, reward_model, tokens

from alignkit import DataError
from alignkit.data.group import read_groups, write_groups
from alignkit.registry import Component
from alignkit.settings import Settings
from alignkit_plugins.monitors.reward_hacking import Gold

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
CHECKED: dict[str, Any] = {"scores": GOLD, "iterations": 3, "count": 4}


def by(function: str) -> dict[str, Any]:
    return {"python": {"path": "reward.py", "function": function}}


def gold(reward: Any, **options: Any) -> list[dict[str, Any]]:
    return [{"gold": {"reward": reward, **options}}]


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def adapter(ran: Ran) -> bytes:
    return (ran.folder / "align" / "adapter" / "adapter_model.safetensors").read_bytes()


def rows(ran: Ran, iteration: int) -> list[dict[str, Any]]:
    groups = read_groups(ran.folder / "align" / "gold" / f"{iteration:04d}.jsonl")
    return [
        {"prompt": group.id, "text": r.text, **r.scores}
        for group in groups
        for r in group.responses
    ]


def held_out(folder: Path, count: int = 3) -> str:
    folder.mkdir(exist_ok=True)
    write_groups(folder / "held_out.jsonl", prompts(8)[8 - count :])
    return "held_out.jsonl"


@pytest.mark.parametrize("where", ["rollouts", "held-out prompts"])
def test_gold_changes_nothing_that_is_learned(where: str, tmp_path: Path) -> None:
    """With reward models for both, whose scores are cached."""
    models = {"rm": reward_model(1), "other": reward_model(2)}
    keys: dict[str, Any] = {"before": models, "reward": "rm", **CHECKED}
    plain = online(folder(tmp_path, "plain"), Watched(), **keys)
    file = held_out(tmp_path / "gold")
    more = {"prompts": file} if where == "held-out prompts" else {}
    watched = online(tmp_path / "gold", Watched(), monitors=gold("other", **more), **keys)
    assert adapter(plain) == adapter(watched)
    learned = load_file(plain.folder / "align" / "adapter" / "adapter_model.safetensors")
    assert any(bool(weight.any()) for name, weight in learned.items() if "lora_B" in name)
    assert [*map(tokens, plain.rollouts())] == [*map(tokens, watched.rollouts())]
    assert all("gold" in metrics for metrics in watched.metrics)


def test_gold_on_held_out_prompts_is_scored_with_the_own_reward_as_well(tmp_path: Path) -> None:
    file = held_out(tmp_path)
    ran = online(
        tmp_path, Watched(), monitors=gold(by("gold"), prompts=file), learning_rate=STILL, **CHECKED
    )
    for number, metrics in enumerate(ran.metrics, 1):
        found = rows(ran, number)
        assert len(found) == 3 * 2 and len({row["prompt"] for row in found}) == 3
        assert [row["gold"] for row in found] == [len(row["text"]) for row in found]
        assert [row["reward"] for row in found] == [
            sum(row["text"].encode()) % 1009 for row in found
        ]
        assert metrics["gold"] == pytest.approx(sum(row["gold"] for row in found) / 6)
    assert rows(ran, 1) != rows(ran, 2)  # other samples of the same policy


def test_gold_on_rollouts_costs_no_samples(tmp_path: Path) -> None:
    ran = online(tmp_path, Watched(), monitors=gold(by("gold")), **CHECKED)
    sampled = {response.text for group in ran.rollouts()[0] for response in group.responses}
    assert {row["text"] for row in rows(ran, 1)} == sampled
    # The files that are learned from do not know it.
    assert all(
        "gold" not in r.scores and r.reward != len(r.text)
        for g in ran.rollouts()[0]
        for r in g.responses
    )


def test_missing_scores_are_missing_and_not_zero(tmp_path: Path) -> None:
    ran = online(
        tmp_path, Watched(), monitors=gold(by("half"), prompts=held_out(tmp_path, 8)), **CHECKED
    )
    found = [row["gold"] for row in rows(ran, 1)]
    known = [score for score in found if score is not None]
    assert 0 < len(known) < len(found)
    assert ran.metrics[0]["gold"] == pytest.approx(sum(known) / len(known))
    assert ran.metrics[0]["gold_unscored"] == len(found) - len(known)


def test_gold_that_says_nothing_has_no_mean(tmp_path: Path) -> None:
    ran = online(tmp_path, Watched(), monitors=gold(by("none")), **CHECKED)
    assert all("gold" not in metrics and metrics["gold_unscored"] == 4 for metrics in ran.metrics)
    assert ran.summary["gold"] == {"best_iteration": 0, "change": None}


def test_gold_that_is_the_reward_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    online(tmp_path, Watched(), monitors=gold(PYTHON), learning_rate=STILL)
    assert "warning: gold is the reward itself" in " ".join(capsys.readouterr().err.split())
    online(folder(tmp_path, "other"), Watched(), monitors=gold(by("gold")), **CHECKED)
    assert "gold is the reward itself" not in " ".join(capsys.readouterr().err.split())


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


class Dies(Watched):
    """Ends the run in its third iteration, once."""

    alive = False

    def signal(self, rollouts: Any) -> Any:
        if self.measured is not None and not self.alive and len(self.seen) == 2:
            raise KeyboardInterrupt
        return super().signal(rollouts)


def test_a_restarted_stage_knows_what_gold_said(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        **CHECKED,
        "iterations": 4,
        "monitors": gold(by("gold"), prompts="held_out.jsonl"),
    }
    for name in ("whole", "broken"):
        held_out(tmp_path / name)
    whole = online(tmp_path / "whole", Watched(), **keys)
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path / "broken", Dies(), **keys)
    again = online(tmp_path / "broken", Watched(), **keys)
    assert adapter(whole) == adapter(again) and whole.summary["gold"] == again.summary["gold"]
    kept = ("gold", "self_bleu", "distinct_2")
    for one, other in zip(whole.metrics, again.metrics, strict=True):
        assert {name: one.get(name) for name in kept} == {name: other.get(name) for name in kept}


def test_what_gold_said_must_be_readable_on_a_restart(tmp_path: Path) -> None:
    keys: dict[str, Any] = {**CHECKED, "iterations": 4, "monitors": gold(by("gold"))}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, Dies(), **keys)
    (tmp_path / "run" / "align" / "gold" / "0001.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"gold/0001.jsonl:1: not valid JSON"):
        online(tmp_path, Watched(), **keys)
