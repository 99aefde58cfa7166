"""The starts of a run: how each ended, on which machine, from which commit; and its warnings."""

import json
import os
import platform
import subprocess
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from made import STARTS, make_run

from alignkit.errors import RunFailed, StageWaits, Stopped
from alignkit_plugins.report import history
from tests.rows import write_rows


def test_a_run_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_rows(folder / "starts.jsonl", STARTS[:1])
    assert history.starts_of(folder)[-1]["outcome"] == "killed"
    with FileLock(folder / ".lock"):
        os.utime(folder / ".lock", (1, 1))
        assert history.starts_of(folder)[-1]["outcome"] == "running"
        write_rows(folder / "starts.jsonl", STARTS)
        assert history.starts_of(folder)[-1]["outcome"] == "done"
    assert (folder / ".lock").stat().st_mtime == 1  # to look at a run writes nothing


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "done"),
        (RunFailed("no"), "failed"),
        (Stopped("SIGTERM"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (StageWaits("labels", missing=1, store=Path()), "waiting"),
    ],
)
def test_how_a_run_ended(error: BaseException | None, outcome: str, tmp_path: Path) -> None:
    history.write_start(tmp_path, tmp_path)
    with (tmp_path / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "sta')  # of a process that was killed while it wrote
    history.write_start(tmp_path, tmp_path)
    history.write_end(tmp_path, error, "1 GiB")
    first, last = history.starts_of(tmp_path)
    assert first["outcome"] == "killed" and last["outcome"] == outcome
    assert last["peak_memory"] == "1 GiB" and last["machine"]["cores"] > 0 and last["command"]


def test_a_full_disk_does_not_end_a_run(tmp_path: Path) -> None:
    history.write_start(tmp_path / "missing", tmp_path)


def test_the_commit_is_that_of_the_recipe(tmp_path: Path) -> None:
    assert history.commit_of(tmp_path) == ""
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert len(history.commit_of(tmp_path)) == 40


def test_keys_in_messages_are_hidden_and_the_machine_has_no_name(tmp_path: Path) -> None:
    error = RunFailed("the key sk-abcdefghijklmnop1234 is wrong")
    history.write_end(tmp_path, error, "")
    assert "sk-abc" not in (tmp_path / "starts.jsonl").read_text(encoding="utf-8")
    machine = history.machine()
    assert platform.node() == "" or platform.node() not in json.dumps(machine)
    assert machine["memory"] == psutil.virtual_memory().total
