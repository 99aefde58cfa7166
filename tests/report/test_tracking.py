"""Trackers see every line of metrics once, and never hurt a run: real TensorBoard, and trackers
that fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Message, Response, RunFailed
from alignkit.cli import main
from alignkit.data.group import write_groups
from alignkit.plugins import plugins

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


def run(
    folder: Path, trackers: Any, expected: int = 0, *more: str, steps: int = 3, command: str = "run"
) -> Path:
    """Run three steps of SFT; returns the run's folder."""
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    demo = Response(text="bread is good")
    rows = [
        Group((Message(role="user", content=f"bread {word}"),), (demo,))
        for word in ("a", "is", "good")
    ]
    write_groups(folder / "demos.jsonl", rows)
    sft = {"algorithm": "sft", "data": "demos.jsonl", "batch_size": 1, "max_steps": steps}
    recipe = {
        "model": {"base": "tiny", "dtype": "float32"},
        "trackers": trackers,
        "stages": {"sft": sft},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = ["--out", str(folder / "run")] if command == "run" else []
    plugin = ["--plugin", str(folder / "plugin.py")]
    assert main([command, str(folder / "recipe.yaml"), *plugin, *out, *more]) == expected
    return folder / "run"


def journal(folder: Path) -> list[Any]:
    return [
        json.loads(line)
        for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def adapter(folder: Path) -> bytes:
    return (folder / "sft" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_each_line_is_logged_once(tmp_path: Path) -> None:
    """A second run reuses the stage, and shows nothing; one that trains on goes on where it is
    shown.
    """
    folder = run(tmp_path, ["journal"])
    rows = journal(folder)
    assert rows[0] == ["start", "recipe"] and rows[-1] == ["finish"]
    assert [row[:2] for row in rows[1:-1]] == [
        ["sft", 1],
        ["sft", 2],
        ["sft", 3],
    ] and "loss" in rows[1][2]
    assert not {"stage", "step", "time"} & set(rows[1][2])
    run(tmp_path, ["journal"])
    assert journal(folder) == rows  # not even a start
    run(tmp_path, [], 0, "trackers=[journal]", steps=4)
    assert [row[1] for row in journal(folder)[len(rows) + 1 : -1]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", "failed in `log`: SystemExit: no network"),
        ("unstarted", "failed in `start`: OSError: no disk"),
        ("unfinished", "failed in `finish`: ValueError: not sent"),
    ],
)
def test_a_bad_tracker_never_hurts_a_run(
    tmp_path: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    with_it.mkdir()
    without.mkdir()
    found = run(with_it, [name, "journal"])
    said = capsys.readouterr().err
    assert said.count(f"warning: tracker '{name}'") == 1 and problem in said
    assert "metrics.jsonl has everything" in said
    assert len([row for row in journal(found) if row[0] == "sft"]) == 3  # the other one is whole
    assert adapter(found) == adapter(run(without, []))


def test_the_hash_of_a_stage_knows_no_tracker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [])
    run(tmp_path, ["journal"])
    assert "sft: unchanged, reused" in capsys.readouterr().err


def test_missing_packages_are_reported_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ["unready", "dvclive"], 2)
    said = capsys.readouterr().err
    assert "run `pip install x`" in said and "tracker 'dvclive' needs the package dvclive" in said
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    ("trackers", "more", "code", "message"),
    [
        (["jurnal"], [], 2, "no tracker 'jurnal'"),
        ("journal", [], 2, "trackers"),
        ([{"journal": {"x": 1}}], [], 2, "unknown"),
        ([], ["trackers=[jurnal]"], 2, "no tracker 'jurnal'"),
    ],
)
def test_wrong_names(
    tmp_path: Path,
    trackers: Any,
    more: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tmp_path, trackers, code, *more)
    assert message in capsys.readouterr().err


# TensorBoard


def test_trackers_without_their_package_say_so() -> None:
    kind = plugins().get("tracker", "clearml").implementation
    with pytest.raises(RunFailed, match="run `pip install clearml`"):
        kind(kind.Options()).check()


def test_tensorboard_shows_what_metrics_hold(tmp_path: Path) -> None:
    """The event file, read back."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, ["tensorboard"])
    metrics = [
        json.loads(line)
        for line in (folder / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    events = EventAccumulator(str(folder / "trackers" / "tensorboard" / "recipe"))
    events.Reload()
    shown = events.Scalars("sft/loss")
    assert [event.step for event in shown] == [1, 2, 3]
    assert [event.value for event in shown] == pytest.approx(
        [line["loss"] for line in metrics], rel=1e-5
    )
