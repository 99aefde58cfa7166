"""Stop rules: when a stage ends early, which policy is its result, and what it says of its
samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watched import SFT, STILL, Ran, Watched, online

from alignkit import Monitor, Observation, RecipeError, RunFailed
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


def test_a_kl_budget_ends_with_the_last_policy_within_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = online(folder(tmp_path, "free"), Watched(), **KEYS)
    kls = [metrics["kl"] for metrics in free.metrics]
    # The first above all before it
    beyond = next(place for place in range(2, 5) if kls[place] > max(kls[:place]))
    most = (kls[beyond] + max(kls[:beyond])) / 2
    watched = Watched()
    ran = online(folder(tmp_path, "stopped"), watched, monitors=budget(most), **KEYS)
    assert [metrics["kl"] for metrics in ran.metrics] == kls[: beyond + 1]
    # The last iteration was measured, and nothing was learned from it
    assert len(watched.seen) == beyond
    assert ran.summary["kept_iteration"] == beyond and "beyond the budget" in ran.summary["stopped"]
    assert result(ran) == version(free, beyond - 1) != version(free, beyond)
    assert sorted(int(each.name) for each in (ran.folder / "align" / "kept").iterdir()) == [
        *range(1, beyond + 2)
    ]
    said = " ".join(capsys.readouterr().err.split())
    # So that the report has it
    assert f"warning: stopped in iteration {beyond + 1} of 5: the KL" in said
    assert f"the result is the policy that iteration {beyond} began with" in said
    assert ran.summary["iterations"] == beyond + 1 and ran.summary["planned_iterations"] == 5


def test_a_budget_that_the_first_update_breaks_is_no_silent_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = online(tmp_path, Watched(), monitors=budget(1e-9), **KEYS)
    assert ran.summary["kept_iteration"] == 1 and ran.summary["iterations"] == len(ran.metrics) == 2
    assert "the result is the policy that iteration 1 began with" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_policy_that_begins_beyond_the_budget_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"sft": SFT}
    ran = online(
        tmp_path,
        Watched(),
        before=before,
        **{**KEYS, "monitors": budget(1e-9), "from": "sft", "reference": "base"},
    )
    assert ran.summary["kept_iteration"] == ran.summary["iterations"] == 1
    assert "the result is the policy that iteration 1 began with" in " ".join(
        capsys.readouterr().err.split()
    )


class Dies(Watched):
    """Ends the run in its fourth iteration."""

    def select(self, groups: Any, context: Any) -> Any:
        if context.iteration == 4:
            raise KeyboardInterrupt
        return super().select(groups, context)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_killed_goes_back_to_a_version_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Also from the checkpoint before a damaged one. Nobody asked for the versions, and none is
    left.
    """
    keys = {
        **KEYS,
        "monitors": budget(1e6),
        "checkpoint_every": 1 if damaged else 2,
        "keep_versions": False,
    }
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, Dies(), **keys)
    first = (tmp_path / "run" / "align" / "kept" / "1" / "adapter_model.safetensors").read_bytes()
    if damaged:
        checkpoints = sorted((tmp_path / "run" / "align" / "checkpoints").iterdir())
        (checkpoints[-1] / "checkpoint.safetensors").write_bytes(b"")
    look = Monitors.look
    monkeypatch.setattr(
        Monitors,
        "look",
        lambda self, number, groups, metrics: look(self, number, groups, {"kl": 1e9}),
    )
    ran = online(tmp_path, Watched(), **keys)
    assert ran.summary["kept_iteration"] == 2 and result(ran) == first
    assert not (ran.folder / "align" / "kept").exists()


def test_an_iteration_without_a_kl_is_not_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is the KL of no samples, and of a policy that has diverged."""
    found, look = {1: 0.0, 2: math.nan}, Monitors.look
    monkeypatch.setattr(
        Monitors,
        "look",
        lambda self, number, groups, metrics: look(
            self, number, groups, {"kl": found.get(number, 1e9)}
        ),
    )
    ran = online(tmp_path, Watched(), **{**KEYS, "monitors": budget(1.0)})
    assert ran.summary["kept_iteration"] == 1 and ran.summary["iterations"] == 3


def test_a_budget_that_is_never_reached_changes_nothing(tmp_path: Path) -> None:
    free = online(folder(tmp_path, "free"), Watched(), **KEYS)
    ran = online(folder(tmp_path, "budget"), Watched(), monitors=budget(1e6), **KEYS)
    assert len(ran.metrics) == 5 and result(ran) == result(free) and "stopped" not in ran.summary


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
    assert result(ran) == version(ran, 1) != version(ran, 2)


def test_without_the_rule_a_fall_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(History, "fell", lambda self: True)
    ran = online(tmp_path, Watched(), monitors=[{"gold": {"reward": GOLD}}], **KEYS)
    assert len(ran.metrics) == 5 and result(ran) == version(ran, 5)
    assert "warning: gold was best in iteration" in " ".join(capsys.readouterr().err.split())


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
    assert json.loads((ran.folder / "align" / "adapter" / "adapter_config.json").read_text())


def test_weights_that_are_gone_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(History, "fell", lambda self: True)
    monkeypatch.setattr(Trainer, "keep_version", lambda self, number: None)
    with pytest.raises(RunFailed, match=r"the weights to go back to are gone(.*\n)*help: delete"):
        online(tmp_path, Watched(), monitors=STOPS, **KEYS)


def test_rollouts_that_people_deleted_do_not_stop_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(Watched):
        """In the third iteration."""

        def signal(self, rollouts: Any) -> Any:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().signal(rollouts)

    # Most algorithms replay nothing
    monkeypatch.setattr(RolloutFiles, "before", lambda self, iteration: [])
    keys: dict[str, Any] = {"learning_rate": STILL, "iterations": 4}
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path, Dies(), **keys)
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
    add("monitor", "nothing", type("Nothing", (Counts,), {"look": lambda self, *look: None}))
"""


@pytest.fixture
def counts(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "counts.py").write_text(MONITOR, encoding="utf-8")
    load_plugins([tmp_path / "counts.py"])
    yield
    load_plugins()


@pytest.mark.usefixtures("counts")
def test_a_strangers_monitor_ends_a_stage_that_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = online(folder(tmp_path, "free"), Watched(), **KEYS)
    keys = {**KEYS, "monitors": [{"counts": {"most": 5}}]}
    with pytest.raises(KeyboardInterrupt):
        online(folder(tmp_path, "counted"), Dies(), **keys)
    ran = online(tmp_path / "counted", Watched(), **keys)
    assert ran.summary["counts"] == [5, "5 iterations"] and ran.summary["kept_iteration"] == 2
    assert result(ran) == version(free, 1) and "warning: many" in " ".join(
        capsys.readouterr().err.split()
    )
    assert {metrics["counts/first"] for metrics in ran.metrics} == {
        free.rollouts()[0][0].responses[0].reward
    }


@pytest.mark.usefixtures("counts")
@pytest.mark.parametrize(
    ("monitor", "error", "text"),
    [
        ({"counts": {"most": 4, "keep": 0}}, None, ""),
        (
            "nothing",
            PluginError,
            r"plugin 'counts.py'.*, in `Nothing.look`: return an alignkit.Observation",
        ),
        ("count", RecipeError, r"no monitor 'count'(.*\n)*.*did you mean 'counts'"),
    ],
)
def test_what_a_monitor_may_say(
    monitor: Any, error: type[Exception] | None, text: str, tmp_path: Path
) -> None:
    if error is None:
        ran = online(tmp_path, Watched(), monitors=[monitor], **KEYS)
        # That of the iteration that ends
        assert ran.summary["kept_iteration"] == 4 and result(ran) == version(ran, 3)
        return
    with pytest.raises(error, match=text):
        online(tmp_path, Watched(), monitors=[monitor], **KEYS)


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
        assert "1 of 2 iterations had nothing to learn from" in " ".join(
            capsys.readouterr().err.split()
        )
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
