"""What happened to a run: starts and ends, warnings."""

import os
from pathlib import Path

from filelock import FileLock
from made import BEGAN, STARTS, lines, make_run

from alignkit_plugins.report import history


def test_a_start_without_an_end_was_killed(tmp_path: Path) -> None:
    first, second = history.starts_of(make_run(tmp_path / "run"))
    assert (
        first["outcome"] == "killed"
        and first["ended"] is None
        and first["started"] == "2026-09-21T14:13:20Z"
    )
    assert (
        second["outcome"] == "done"
        and second["ended"] == "2026-09-21T14:15:20Z"
        and second["reused"] == ["labels"]
    )
    assert [start["time"] for start in history.starts_of(tmp_path / "run")] == [BEGAN, BEGAN + 20]


def test_a_run_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines(folder / "starts.jsonl", STARTS[:1])
    assert history.starts_of(folder)[-1]["outcome"] == "killed"
    with FileLock(folder / ".lock"):
        os.utime(folder / ".lock", (1, 1))
        assert history.starts_of(folder)[-1]["outcome"] == "running"
    history.starts_of(folder)
    assert (folder / ".lock").stat().st_mtime == 1  # to look at a run writes nothing


def test_warnings_are_those_of_the_last_start(tmp_path: Path) -> None:
    assert history.warnings_of(make_run(tmp_path / "run")) == [("sft", "tracker 'x' failed")]
