"""The fault harness: its model of a disk, and a sample of its cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.io import atomic
from alignkit.io.atomic import replace_folder, write_text
from tests.faults.crashes import Disk, restore

ROOT = Path(__file__).parent.parent


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_only_what_was_synced_survives(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "root")
    disk.root.mkdir()
    with disk.watching():
        (disk.root / "a").write_text("first", encoding="utf-8")
        sync(disk.root / "a")  # its name was not
        sync(disk.root)
        (disk.root / "a").write_text("second", encoding="utf-8")
        (disk.root / "b").write_text("never synced", encoding="utf-8")
        sync(disk.root)
    survived = [tree for tree, _ in disk.points]
    assert survived == [{}, {"a": b"first"}, {"a": b"first", "b": b""}]
    assert disk.points[-1][1] == {"a": b"second", "b": b"never synced"}  # a kill loses nothing
    restore(survived[1], tmp_path / "again")
    assert (tmp_path / "again" / "a").read_bytes() == b"first"


def replaced(root: Path) -> Disk:
    disk = Disk(root)
    disk.root.mkdir()
    with disk.watching():
        for text in ("old", "new"):
            with replace_folder(disk.root / "target") as folder:
                (folder / "file").write_text(text, encoding="utf-8")
            write_text(disk.root / "done", text)
    return disk


def test_a_replaced_folder_is_whole_after_every_crash(tmp_path: Path) -> None:
    for tree, _ in replaced(tmp_path / "root").points:
        if tree.get("done"):
            assert tree["target/file"] in (b"old", b"new")


def test_the_model_notices_a_folder_that_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: None)
    assert not any("target/file" in tree for tree, _ in replaced(tmp_path / "root").points)


@pytest.mark.slow
def test_a_sample_of_all_faults_holds() -> None:
    command = [sys.executable, "-m", "tests.faults", "--every", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
