"""Trackers see every line of metrics once, and never hurt a run: real TensorBoard, and trackers
that fail.
"""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock, call

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from alignkit import RunFailed
from alignkit.cli import main
from alignkit.contract.kinds import TrackedRun
from alignkit.host.plugins import plugins
from alignkit_plugins.report.trackers import AccelerateTracker, Following
from tests import rows

PLUGIN = """
import json
from alignkit import *

class Journal(Tracker):
    def start(self, run):
        self.file = run.folder / f"{type(self).__name__.lower()}.jsonl"
        self.write("start", run.name)

    def log(self, stage, step, metrics):
        self.write(stage, step, sorted(metrics))

    def finish(self):
        self.write("finish")

    def write(self, *row):
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\\n")

class Raises(Journal):
    def log(self, stage, step, metrics):
        raise SystemExit("no network")

class Unstarted(Journal):
    def start(self, run):
        raise OSError("no disk")

class Unfinished(Journal):
    def finish(self):
        raise ValueError("not sent")

class Unready(Journal):
    def check(self):
        raise RunFailed("tracker 'unready' needs the package x: run `pip install x`")

@hookimpl
def register(add):
    for kind in (Journal, Raises, Unstarted, Unfinished, Unready):
        add("tracker", kind.__name__.lower(), kind)
"""


def run(folder: Path, trackers: Any, *more: str, code: int = 0, steps: int = 3) -> Path:
    """Run some steps of SFT; returns the run's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    sft = {"algorithm": "sft", "data": "demos.jsonl", "batch_size": 1, "max_steps": steps}
    recipe = rows.write_recipe(folder, {"sft": sft}, trackers=trackers)
    return rows.run(recipe, "--plugin", str(folder / "plugin.py"), *more, code=code)


def journal(folder: Path) -> list[Any]:
    return rows.read_rows(folder / "journal.jsonl")


def test_each_line_is_logged_once_and_no_hash_knows_a_tracker(
    tmp_path: Path, said: rows.Said
) -> None:
    """A second run reuses the stage, and shows nothing; one that trains on goes on where it is
    shown.
    """
    more = f"{{algorithm: sft, data: {tmp_path}/demos.jsonl, batch_size: 1, max_steps: 1}}"
    folder = run(tmp_path, ["journal"], f"stages.more={more}")
    found = journal(folder)
    assert found[0] == ["start", "recipe"] and found[-1] == ["finish"]
    assert [row[:2] for row in found[1:-1]] == [["sft", 1], ["sft", 2], ["sft", 3], ["more", 1]]
    assert "loss" in found[1][2] and not {"stage", "step", "time"} & set(found[1][2])
    run(tmp_path, ["raises", "journal"])
    assert "sft: unchanged, reused" in said()
    assert journal(folder) == found  # not even a start
    run(tmp_path, [], "trackers=[journal]", steps=4)
    assert [row[1] for row in journal(folder)[len(found) + 1 : -1]] == [1, 2, 3, 4]


def test_a_line_is_tracked_by_its_numbers() -> None:
    following, sent = Following(MagicMock()), Mock()
    following.trackers = {"mine": sent}
    following.log("sft", 3, {"loss": 1, "kl": -math.inf, "note": "text"})
    assert sent.mock_calls[1:] == [call.log("sft", 3, {"loss": 1.0, "kl": -math.inf})]


FAILS = ["raises", "unstarted", "unfinished"]
PROBLEMS = """
failed in `log`: SystemExit: no network
failed in `start`: OSError: no disk
failed in `finish`: ValueError: not sent
"""


def test_bad_trackers_never_hurt_a_run(tmp_path: Path, said: rows.Said) -> None:
    found = run(tmp_path / "with", [*FAILS, "journal"])
    message = said()
    for name, problem in zip(FAILS, PROBLEMS.strip().splitlines(), strict=True):
        assert message.count(f"warning: tracker '{name}'") == 1 and problem in message
    assert "metrics.jsonl has everything" in message
    assert len([row for row in journal(found) if row[0] == "sft"]) == 3  # the last one is whole
    weights = "sft/adapter/adapter_model.safetensors"
    assert main(["verify", str(found), "--plugin", str(tmp_path / "with" / "plugin.py")]) == 0
    assert "warning: tracker" not in said()  # what is run again is not sent
    without = run(tmp_path / "without", [])
    assert (found / weights).read_bytes() == (without / weights).read_bytes()


WRONG = """
    [unready, dvclive]  | run `pip install x`
    [unready, dvclive]  | tracker 'dvclive' needs the package dvclive
    [jurnal]            | no tracker 'jurnal'
    journal             | trackers
    [{journal: {x: 1}}] | unknown
"""


@pytest.mark.parametrize(("trackers", "message"), rows.cells(WRONG))
def test_wrong_names_and_missing_packages_are_named_before_the_run(
    trackers: str, message: str, tmp_path: Path, said: rows.Said
) -> None:
    run(tmp_path, [], f"trackers={trackers}", code=2)
    out = run(tmp_path, yaml.safe_load(trackers), code=2)
    assert said().count(message) >= 2 and not (out / "sft").exists()


def test_trackers_without_their_package_say_so() -> None:
    kind = plugins().get("tracker", "clearml").implementation
    with pytest.raises(RunFailed, match="run `pip install clearml`"):
        kind(kind.Options()).check()


def test_tensorboard_shows_what_metrics_hold(tmp_path: Path) -> None:
    """The event file, read back."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, ["tensorboard"])
    losses = [row["loss"] for row in rows.read_rows(folder / "sft" / "metrics.jsonl")]
    events = EventAccumulator(str(folder / "trackers" / "tensorboard" / "recipe"))
    events.Reload()
    shown = events.Scalars("sft/loss")
    assert [event.step for event in shown] == [1, 2, 3]
    assert [event.value for event in shown] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "step"), [("tensorboard", 3), ("wandb", None), ("comet_ml", None)]
)
def test_metrics_have_the_names_of_their_stages(name: str, step: int | None) -> None:
    """Steps of some trackers must rise over all stages, so they are a metric there."""
    made, sent = AccelerateTracker(AccelerateTracker.Options()), Mock()
    made.name, made.tracker = name, sent  # type: ignore[misc]
    made.log("sft", 3, {"loss": 1.0})
    own = {"sft/loss": 1.0}
    assert sent.log.mock_calls == [call(own, step=3) if step else call({**own, "sft/step": 3})]


STARTED = """
wandb       | call('alignkit', name='small', resume='allow', id='ID', logging_dir='wandb', mode='x')
trackio     | call('alignkit', name='small', resume='allow', logging_dir='trackio', mode='x')
tensorboard | call('small', logging_dir='tensorboard', mode='x')
mlflow      | call('alignkit', logging_dir='mlflow', mode='x')
"""


@pytest.mark.parametrize(("name", "started"), rows.cells(STARTED))
def test_a_tracker_knows_its_run(
    name: str, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it goes on: one address for each folder."""
    monkeypatch.setattr("accelerate.PartialState", Mock())
    options = AccelerateTracker.Options.model_validate({"mode": "x"})
    made, kind = type("Named", (AccelerateTracker,), {"name": name})(options), Mock()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    made.start(TrackedRun("small", tmp_path, {}))
    known = sha256(str(tmp_path).encode()).hexdigest()[:16]
    text = str(kind.call_args).replace(f"{tmp_path}/trackers/", "").replace(known, "ID")
    assert text == started
