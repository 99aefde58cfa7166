"""Stop rules: when a stage ends early, which policy is its result, and what it says of its samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from watched import STILL, Ran, Watched, online

from alignkit import RunFailed
from alignkit.training.rollouts import RolloutFiles
from alignkit.training.watch import StageWatch
from alignkit.watching.falling import Gold

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = """
def reward(completions):
    return [float(sum(c.encode()) % 1009) for c in completions]

def gold(completions):
    return [float(len(c)) for c in completions]
"""
GOLD = {"python": {"path": "reward.py", "function": "gold"}}
KEYS: dict[str, Any] = {"scores": SCORES, "iterations": 5, "keep_versions": True, "learning_rate": 0.05}


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def result(ran: Ran) -> bytes:
    return weights(ran.folder / "align" / "adapter")


def version(ran: Ran, number: int) -> bytes:
    """The weights after an iteration: those that the next one sampled from."""
    return weights(ran.folder / "align" / "kept" / str(number))


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_a_kl_budget_ends_with_the_last_policy_within_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = online(folder(tmp_path, "free"), Watched(), **KEYS)
    kls = [metrics["kl"] for metrics in free.metrics]
    beyond = next(place for place in range(2, 5) if kls[place] > max(kls[:place]))  # the first above all before it
    budget = (kls[beyond] + max(kls[:beyond])) / 2
    watched = Watched()
    ran = online(folder(tmp_path, "stopped"), watched, stop={"kl": budget}, **KEYS)
    assert [metrics["kl"] for metrics in ran.metrics] == kls[: beyond + 1]
    assert len(watched.seen) == beyond  # the last iteration was measured, and nothing was learned from it
    assert ran.summary["kept_iteration"] == beyond and "beyond the budget" in ran.summary["stopped"]
    assert result(ran) == version(free, beyond - 1) != version(free, beyond)
    assert not (ran.folder / "align" / "rollback").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert f"the result is the policy that iteration {beyond} sampled from" in said


def test_a_budget_that_is_never_reached_changes_nothing(tmp_path: Path) -> None:
    free = online(folder(tmp_path, "free"), Watched(), **KEYS)
    ran = online(folder(tmp_path, "budget"), Watched(), stop={"kl": 1e6}, **KEYS)
    assert len(ran.metrics) == 5 and result(ran) == result(free) and "stopped" not in ran.summary


def test_falling_gold_ends_with_the_best_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule itself has tests of its own; here, gold was best in iteration 2 and has fallen in iteration 4."""

    def add(self: Gold, iteration: int, by_prompt: object) -> None:
        self.best, self.last = min(iteration, 2), iteration

    monkeypatch.setattr(Gold, "add", add)
    monkeypatch.setattr(Gold, "fell", lambda self: self.last == 4)
    ran = online(tmp_path, Watched(), gold=GOLD, stop={"gold": "falls"}, **KEYS)
    assert len(ran.metrics) == 4 and ran.summary["kept_iteration"] == 2
    assert result(ran) == version(ran, 1) != version(ran, 2)


def test_without_the_rule_a_fall_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Gold, "fell", lambda self: True)
    ran = online(tmp_path, Watched(), gold=GOLD, **KEYS)
    assert len(ran.metrics) == 5 and result(ran) == version(ran, 5)
    assert "warning: gold was best in iteration" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("rule", [{}, {"stop": {"hacking": True}}], ids=["alarm", "alarm stops"])
def test_the_alarm_is_raised_once_and_may_stop(
    rule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignkit.watching.alarm import Alarm, Bought, Hacking
    from alignkit.watching.change import Change

    moved = Change(1.0, 0.5, 1.5, 0.0, 1.0, 9)
    bought = Bought("the word 'x'", 0.1, 0.9, 1.0, 0.0, 0.8)
    monkeypatch.setattr(
        Alarm, "add", lambda self, look: Hacking(look.iteration, moved, moved, [bought]) if look.iteration > 2 else None
    )
    ran = online(tmp_path, Watched(), gold=GOLD, **rule, **KEYS)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: reward hacking: since the first iteration the reward rose") == 1
    assert ran.summary["hacking"]["iteration"] == 3 and ran.summary["hacking"]["bought"] == ["the word 'x'"]
    assert len(ran.metrics) == (3 if rule else 5)
    if rule:
        assert ran.summary["kept_iteration"] == max(range(1, 4), key=lambda n: ran.metrics[n - 1]["gold"])


def test_a_stage_that_was_stopped_and_then_killed_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gold, "fell", lambda self: True)
    saves = []

    def killed(self: StageWatch) -> None:
        saves.append(self.best)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageWatch, "save", killed)
        online(tmp_path, Watched(), gold=GOLD, stop={"gold": "falls"}, **KEYS)
    ran = online(tmp_path, Watched(), gold=GOLD, stop={"gold": "falls"}, **KEYS)
    assert len(ran.metrics) == 1 and [ran.summary["kept_iteration"]] == saves == [1]
    assert json.loads((ran.folder / "align" / "adapter" / "adapter_config.json").read_text())


def test_weights_that_are_gone_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gold, "fell", lambda self: True)
    monkeypatch.setattr(StageWatch, "_remember", lambda self, number: None)
    with pytest.raises(RunFailed, match=r"the weights of iteration 1 are gone(.*\n)*help: delete"):
        online(tmp_path, Watched(), gold=GOLD, stop={"gold": "falls"}, **KEYS)


def test_rollouts_that_people_deleted_do_not_stop_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies(Watched):
        """In the third iteration."""

        def signal(self, rollouts: Any) -> Any:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().signal(rollouts)

    monkeypatch.setattr(RolloutFiles, "before", lambda self, iteration: [])  # most algorithms replay nothing
    keys: dict[str, Any] = {"learning_rate": STILL, "iterations": 4}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, Dies(), **keys)
    (tmp_path / "run" / "align" / "rollouts" / "0001.jsonl").unlink()
    assert len(online(tmp_path, Watched(), **keys).metrics) == 4
