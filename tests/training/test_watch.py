"""Stop rules: when a stage ends early, which policy is its result, and what it says of its
samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from watched import SFT, Ran, Watched, by, dies, online, weights

from alignkit import Monitor, MonitorReport, Options, RunFailed
from alignkit.errors import PluginError
from alignkit.host.plugins import plugins
from alignkit.host.registry import Registration
from alignkit.training.monitors import Monitors, report_of
from alignkit.training.replay import RolloutFiles
from alignkit.training.trainer import Trainer
from alignkit_plugins.monitors.reward_hacking import History
from tests.rows import Said

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = """
def reward(completions):
    return [float(sum(c.encode()) % 1009) for c in completions]

def gold(completions):
    return [float(len(c)) for c in completions]
"""
STOPS = [{"gold": {"reward": by("gold"), "stop": True}}]
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


def test_a_kl_budget_ends_with_the_last_policy_within_it(
    free: Ran, tmp_path: Path, said: Said
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
    assert "beyond the budget" in ran.summary.pop("stopped")
    counts = {"iterations": beyond + 1, "planned_iterations": 5, "kept_iteration": beyond}
    assert ran.summary.items() >= counts.items()
    told = " ".join(said().split())
    assert f"warning: stopped in iteration {beyond + 1} of 5: the KL" in told
    assert f"the result is the policy that iteration {beyond} began with" in told


@pytest.mark.parametrize(
    ("keys", "ended"),
    [({}, 2), ({"before": {"sft": SFT}, "from": "sft", "reference": "base"}, 1)],
    ids=["broken by the first update", "begins beyond it"],
)
def test_a_budget_that_no_update_keeps_leaves_the_first_policy(
    tmp_path: Path, said: Said, keys: dict[str, Any], ended: int
) -> None:
    ran = online(tmp_path, Watched(), monitors=budget(1e-9), **KEYS, **keys)
    assert ran.summary["kept_iteration"] == 1
    assert ran.summary["iterations"] == len(ran.metrics) == ended
    assert "the policy that iteration 1 began with" in " ".join(said().split())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_killed_goes_back_to_a_version_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Also from the checkpoint before a damaged one, and after people deleted samples, which most
    algorithms replay not. Nobody asked for the versions, and none is left.
    """
    monkeypatch.setattr(RolloutFiles, "before", lambda self, iteration: [])
    every = 1 if damaged else 2
    keys = {**KEYS, "monitors": budget(1e6), "checkpoint_every": every, "keep_versions": False}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, dies(Watched(), 4), **keys)
    stage = tmp_path / "run" / "align"
    first = weights(stage / "kept" / "1")
    if damaged:
        newest = max((stage / "checkpoints").iterdir())
        (newest / "checkpoint.safetensors").write_bytes(b"")
        (stage / "rollouts" / "0001.jsonl").unlink()
    measures(monkeypatch, {})
    ran = online(tmp_path, Watched(), **keys)
    assert ran.summary["kept_iteration"] == 2 and ran.weights == first
    assert len(list((stage / "rollouts").iterdir())) == 3 - damaged
    assert not (stage / "kept").exists()


def measures(monkeypatch: pytest.MonkeyPatch, kls: Mapping[int, float]) -> None:
    """Monitors see these KLs by iteration, and else one beyond any budget."""
    observe = Monitors.observe

    def seen(self: Monitors, number: int, groups: Any, metrics: Any) -> dict[str, Any]:
        return observe(self, number, groups, {"kl": kls.get(number, 1e9)}) | {"truncated": -1.0}

    monkeypatch.setattr(Monitors, "observe", seen)


def test_an_iteration_without_a_kl_is_not_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is the KL of no samples, and of a policy that has diverged."""
    measures(monkeypatch, {1: 0.0, 2: math.nan})
    ran = online(tmp_path, Watched(), monitors=budget(1.0), **KEYS)
    assert ran.summary["kept_iteration"] == 1 and ran.summary["iterations"] == 3
    assert all(metrics["truncated"] >= 0 for metrics in ran.metrics)


@pytest.mark.parametrize(
    ("finish", "best", "kept"),
    [
        (lambda self: None, 2, 2),
        (Monitors.finish, 2, 2),
        pytest.param(Monitors.finish, 0, 4, marks=pytest.mark.slow),
    ],
    ids=["before", "after", "without a best one"],
)
def test_falling_gold_ends_with_the_best_policy_also_after_a_kill(
    free: Ran,
    finish: Callable[[Monitors], None],
    best: int,
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rule itself has tests of its own; here, gold was best in iteration 2, or in none, and has
    fallen in iteration 4. Killed before the result is written, or after it, when the version that
    it goes back to is discarded.
    """

    def add(self: History, iteration: int, scores: object) -> None:
        self.best, self.last = min(iteration, best), iteration

    monkeypatch.setattr(History, "add", add)
    monkeypatch.setattr(History, "fell", lambda self: self.last == 4)
    saved = []

    def killed(self: Monitors) -> None:
        saved.append(self.trainer.summary["kept_iteration"])
        finish(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitors, "finish", killed)
        online(tmp_path, Watched(), monitors=STOPS, **KEYS)
    ran = online(tmp_path, Watched(), monitors=STOPS, **KEYS)
    assert len(ran.metrics) == ran.summary["iterations"] == 4
    assert [ran.summary["kept_iteration"]] == saved == [kept]
    assert ran.weights == free.kept(kept - 1) != free.kept(kept)


def test_weights_that_are_gone_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(History, "fell", lambda self: True)
    monkeypatch.setattr(Trainer, "keep_version", lambda self, number: None)
    with pytest.raises(RunFailed, match="the weights to go back to are gone"):
        online(tmp_path, Watched(), monitors=STOPS, **KEYS)


def test_a_stage_that_is_stopped_before_it_learned_anything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the iterations that a monitor let learn: the one that it ends is neither idle nor planned
    any more.
    """
    measures(monkeypatch, {1: 0.0, 2: 0.0})
    nothing = Watched(keep=lambda group: False)
    with pytest.raises(RunFailed) as raised:
        online(tmp_path, nothing, monitors=budget(1.0), **KEYS)
    fact, example, *answers, place = str(raised.value).splitlines()
    assert "2 of 2 iterations had nothing to learn from. Last reason: " in fact
    assert re.fullmatch(r"For example, '.+' was answered by:", example)
    assert len(answers) == 2 and place.startswith("The samples are in ")
    assert all(re.fullmatch(r"  '.*', score \d+", answer) for answer in answers)


def test_a_monitor_goes_back_and_not_forward() -> None:
    class Late(Monitor):
        def observe(self, iteration: int, groups: Any, metrics: Any) -> MonitorReport:
            return MonitorReport(best=4)

    monitor = Late(Late.Options())
    assert report_of(monitor, 4, [], {}).best == 4
    with pytest.raises(PluginError, match="return as `best` an iteration up to this one, 3, not 4"):
        report_of(monitor, 3, [], {})


class Every(Monitor):
    """Looks at every stage."""

    def observe(self, iteration: int, groups: Any, metrics: Any) -> MonitorReport:
        return MonitorReport({"looks": iteration})


class Limited(Every):
    """Cannot be a default: it has an option without a default."""

    class Options(Options):
        limit: int


def test_every_stage_has_what_plugins_add_as_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for monitor in (Every, Limited):
        mine = Registration("mine", monitor, kind="monitor", default=True, plugin="x")
        monkeypatch.setattr(plugins(), "_all", [*plugins()._all, mine])
        if monitor is Every:
            ran = online(tmp_path / "a", Watched(), iterations=2)
            assert [metrics["looks"] for metrics in ran.metrics] == [1, 2]
    with pytest.raises(PluginError, match=r"plugin 'x', in `Limited.Options`.*limit"):
        online(tmp_path / "b", Watched(), iterations=1)
