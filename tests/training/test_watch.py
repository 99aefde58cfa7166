"""Stop rules: when a stage ends early, which policy is its result, and what it says of its
samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from watched import SFT, STILL, Ran, Watched, dies, online, weights

from alignkit import Monitor, Observation, RunFailed
from alignkit.calls import create
from alignkit.errors import PluginError
from alignkit.plugins import load_plugins
from alignkit.registry import Component, Registration
from alignkit.training.monitors import Monitors, look
from alignkit.training.rollouts import RolloutFiles
from alignkit.training.trainer import Trainer
from alignkit_plugins.monitors.reward_hacking import History

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = """
def reward(completions):
    return [float(sum(c.encode()) % 1009) for c in completions]

def gold(completions):
    return [float(len(c)) for c in completions]
"""
GOLD = {"python": {"path": "reward.py", "function": "gold"}}
STOPS = [{"gold": {"reward": GOLD, "stop": True}}]
KEYS: dict[str, Any] = {
    "scores": SCORES,
    "iterations": 5,
    "keep_versions": True,
    "learning_rate": 0.05,
}


def budget(kl: float) -> list[dict[str, Any]]:
    return [{"kl_budget": {"max": kl}}]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Ran:
    """A run without monitors."""
    return online(tmp_path_factory.mktemp("free"), Watched(), **KEYS)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_kl_budget_ends_with_the_last_policy_within_it(
    free: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kls = [metrics["kl"] for metrics in free.metrics]
    # The first above all before it
    beyond = next(place for place in range(2, 5) if kls[place] > max(kls[:place]))
    most = (kls[beyond] + max(kls[:beyond])) / 2
    watched = Watched()
    ran = online(tmp_path, watched, monitors=budget(most), **KEYS)
    assert [metrics["kl"] for metrics in ran.metrics] == kls[: beyond + 1]
    # The last iteration was measured, and nothing was learned from it
    assert len(watched.seen) == beyond
    assert ran.weights == free.kept(beyond - 1) != free.kept(beyond)
    kept = {int(each.name) for each in (ran.folder / "align" / "kept").iterdir()}
    assert kept == {*range(1, beyond + 2)}
    assert "beyond the budget" in ran.summary.pop("stopped")
    counts = {"iterations": beyond + 1, "planned_iterations": 5, "kept_iteration": beyond}
    assert ran.summary.items() >= counts.items()
    told = said(capsys)
    assert f"warning: stopped in iteration {beyond + 1} of 5: the KL" in told
    assert f"the result is the policy that iteration {beyond} began with" in told


@pytest.mark.parametrize(
    ("keys", "ended"),
    [({}, 2), ({"before": {"sft": SFT}, "from": "sft", "reference": "base"}, 1)],
    ids=["broken by the first update", "begins beyond it"],
)
def test_a_budget_that_no_update_keeps_leaves_the_first_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], ended: int
) -> None:
    ran = online(tmp_path, Watched(), monitors=budget(1e-9), **KEYS, **keys)
    assert ran.summary["kept_iteration"] == 1
    assert ran.summary["iterations"] == len(ran.metrics) == ended
    assert "the result is the policy that iteration 1 began with" in said(capsys)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_killed_goes_back_to_a_version_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Also from the checkpoint before a damaged one. Nobody asked for the versions, and none is
    left.
    """
    every = 1 if damaged else 2
    keys = {"monitors": budget(1e6), "checkpoint_every": every, "keep_versions": False}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 4), **KEYS | keys)
    stage = tmp_path / "run" / "align"
    first = weights(stage / "kept" / "1")
    if damaged:
        checkpoints = sorted((stage / "checkpoints").iterdir())
        (checkpoints[-1] / "checkpoint.safetensors").write_bytes(b"")
    measures(monkeypatch, {})
    ran = online(tmp_path, Watched(), **KEYS | keys)
    assert ran.summary["kept_iteration"] == 2 and ran.weights == first
    assert not (stage / "kept").exists()


def measures(monkeypatch: pytest.MonkeyPatch, kls: Mapping[int, float]) -> None:
    """Monitors see these KLs by iteration, and else one beyond any budget."""
    look = Monitors.look

    def seen(self: Monitors, number: int, groups: Any, metrics: Any) -> dict[str, Any]:
        return look(self, number, groups, {"kl": kls.get(number, 1e9)})

    monkeypatch.setattr(Monitors, "look", seen)


def test_an_iteration_without_a_kl_is_not_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is the KL of no samples, and of a policy that has diverged."""
    measures(monkeypatch, {1: 0.0, 2: math.nan})
    ran = online(tmp_path, Watched(), monitors=budget(1.0), **KEYS)
    assert ran.summary["kept_iteration"] == 1 and ran.summary["iterations"] == 3


def test_falling_gold_ends_with_the_best_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule itself has tests of its own; here, gold was best in iteration 2 and has fallen in
    iteration 4.
    """

    def add(self: History, iteration: int, scores: object) -> None:
        self.best, self.last = min(iteration, 2), iteration

    monkeypatch.setattr(History, "add", add)
    monkeypatch.setattr(History, "fell", lambda self: self.last == 4)
    ran = online(tmp_path, Watched(), monitors=STOPS, **KEYS)
    assert len(ran.metrics) == 4 and ran.summary["kept_iteration"] == 2
    assert ran.weights == ran.kept(1) != ran.kept(2)


@pytest.mark.parametrize("finish", [lambda self: None, Monitors.finish], ids=["before", "after"])
def test_a_stage_that_was_stopped_and_then_killed_stays_stopped(
    finish: Callable[[Monitors], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its result is written, or after it, when the version that it goes back to is
    discarded.
    """
    monkeypatch.setattr(History, "fell", lambda self: True)
    saves = []

    def killed(self: Monitors) -> None:
        saves.append(self.trainer.summary["kept_iteration"])
        finish(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitors, "finish", killed)
        online(tmp_path, Watched(), monitors=STOPS, **KEYS)
    ran = online(tmp_path, Watched(), monitors=STOPS, **KEYS)
    assert len(ran.metrics) == 1 and [ran.summary["kept_iteration"]] == saves == [
        ran.summary["iterations"]
    ] == [1]
    assert (ran.folder / "align" / "adapter" / "adapter_config.json").is_file()


def test_weights_that_are_gone_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(History, "fell", lambda self: True)
    monkeypatch.setattr(Trainer, "keep_version", lambda self, number: None)
    with pytest.raises(RunFailed, match="the weights to go back to are gone"):
        online(tmp_path, Watched(), monitors=STOPS, **KEYS)


def test_rollouts_that_people_deleted_do_not_stop_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most algorithms replay nothing
    monkeypatch.setattr(RolloutFiles, "before", lambda self, iteration: [])
    keys: dict[str, Any] = {"learning_rate": STILL, "iterations": 4}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 3), **keys)
    (tmp_path / "run" / "align" / "rollouts" / "0001.jsonl").unlink()
    assert len(online(tmp_path, Watched(), **keys).metrics) == 4


MONITOR = """
from alignkit import Field, Monitor, Observation, Options, hookimpl


class Counts(Monitor):
    class Options(Options):
        most: int = Field(99, ge=1, description="iterations")
        keep: int = Field(2, ge=0, description="the iteration to go back to")

    def start(self, stage):
        self.seen = []

    def look(self, iteration, groups, metrics):
        self.seen.append([response.reward for group in groups for response in group.responses])
        stop = f"{iteration} iterations" if iteration == self.options.most else ""
        best = min(iteration, self.options.keep)
        return Observation({"counts/first": self.seen[0][0]}, ["many"] if stop else [], {}, stop, best)

    def finish(self, stopped):
        return Observation(summary={"counts": [len(self.seen), stopped]})


@hookimpl
def register(add):
    add("monitor", "counts", Counts)
"""


@pytest.fixture
def counts(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "counts.py").write_text(MONITOR, encoding="utf-8")
    load_plugins([tmp_path / "counts.py"])
    yield
    load_plugins()


@pytest.mark.usefixtures("counts")
def test_a_strangers_monitor_ends_a_stage_that_was_interrupted(
    free: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**KEYS, "monitors": [{"counts": {"most": 5}}]}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 4), **keys)
    ran = online(tmp_path, Watched(), **keys)
    assert ran.summary["counts"] == [5, "5 iterations"] and ran.summary["kept_iteration"] == 2
    assert ran.weights == free.kept(1) and "warning: many" in said(capsys)
    first = free.rollouts()[0][0].responses[0].reward
    assert {metrics["counts/first"] for metrics in ran.metrics} == {first}


@pytest.mark.usefixtures("counts")
def test_a_monitor_without_a_best_iteration_ends_with_the_current_one(tmp_path: Path) -> None:
    ran = online(tmp_path, Watched(), monitors=[{"counts": {"most": 4, "keep": 0}}], **KEYS)
    assert ran.summary["kept_iteration"] == 4 and ran.weights == ran.kept(3)


@pytest.mark.usefixtures("counts")
@pytest.mark.parametrize("kept", [0, 1])
def test_a_stage_that_is_stopped_before_it_learned_anything_fails(
    kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the iterations that a monitor let learn: the one that it ends is neither idle nor planned
    any more.
    """
    watched = Watched()
    watched.keep = lambda group: len(watched.seen) < kept
    keys: dict[str, Any] = {**KEYS, "monitors": [{"counts": {"most": 3}}]}
    if kept:
        assert online(tmp_path, watched, **keys).summary["iterations"] == 3
        assert "1 of 2 iterations had nothing to learn from" in said(capsys)
        return
    with pytest.raises(RunFailed, match="2 of 2 iterations had nothing to learn from"):
        online(tmp_path, watched, **keys)


def test_a_monitor_goes_back_and_not_forward() -> None:
    class Late(Monitor):
        def look(self, iteration: int, groups: Any, metrics: Any) -> Observation:
            return Observation(best=4 if iteration > 2 else 1)

    monitor = create(Component("monitor", "late", Registration("late", Late), Late.Options()))
    assert [look(monitor, number, [], {}).best for number in (1, 2)] == [1, 1]
    with pytest.raises(
        PluginError, match=r"return as `best` an iteration up to this one, 3, not 4"
    ):
        look(monitor, 3, [], {})
