"""run.log: what was said, when, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignkit.io import console
from alignkit.io.console import RunLog


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLog:
    monkeypatch.setattr(console.time, "gmtime", lambda: (2026, 5, 6, 7, 8, 9, 0, 0, 0))
    return RunLog()


def test_every_line_has_its_time(log: RunLog, tmp_path: Path) -> None:
    log.write("before it was open")
    log.path = tmp_path / "run.log"
    log.write("two\n\nlines")
    stamp = "2026-05-06T07:08:09Z"
    expected = f"{stamp} before it was open\n{stamp} two\n{stamp}\n{stamp} lines\n"
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == expected
    again = RunLog()
    again.path = tmp_path / "run.log"
    again.write("resumed")
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == f"{expected}{stamp} resumed\n"


def test_no_key_and_no_escape_sequence_is_kept(log: RunLog, tmp_path: Path) -> None:
    log.path = tmp_path / "run.log"
    log.write("key sk-abcdefghijklmnop1234\n\x1b[31mred\x1b[0m\rover")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "abcdefghijklmnop" not in text and "key ***" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text) and "red" in text


def test_a_log_that_cannot_be_written_ends_no_run(log: RunLog, tmp_path: Path) -> None:
    log.path = tmp_path / "missing" / "run.log"
    log.write("lost")
    log.path = tmp_path / "run.log"
    log.write("kept")
    assert (tmp_path / "run.log").read_text(encoding="utf-8").endswith(" kept\n")
