"""What happened to a run: its starts, how each ended, and what its log says went wrong."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from alignkit.io.results import STARTS
from alignkit_apps.report.files import each_object, read_text

MOST = 200  # incidents
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) ?(.*)")
_WARNING = re.compile(r"^(?:(\S+): )?warning: (.*)$")
_STAGE = re.compile(r"^(\S+): (?:stage \d+ of \d+, \S+$|(done) in )")
# What a line of run.log says when something happened that a reader should know.
_INCIDENT = re.compile(
    r"^error: |^stopped: |: stopped in iteration |^interrupted|^unexpected |continuing after |, starting over$"
    r"|restored an earlier result"
    r"|the stage runs again|a step was skipped|the checkpoint was written |skipped \d+ bad row|did not finish within"
    r"|retr(?:y|ies)\b|damaged"
)


class Incident(TypedDict):
    """Something that happened. when: UTC, or empty. stage: or empty."""

    when: str
    stage: str
    text: str


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Each start of a run with its end: `started`, `ended`, `outcome`, `message` and the facts of the machine.

    time: of the start, in seconds since 1970. outcome: done, failed, interrupted, waiting (for labels), running, or
    killed if the process ended without a word.
    """
    found: list[dict[str, Any]] = []
    for line in each_object(folder / STARTS):
        facts = {name: value for name, value in line.items() if name not in ("event", "time")}
        if line.get("event") == "start":
            began = {"time": line.get("time"), "started": stamp(line.get("time"))}
            found.append({**began, "ended": None, "outcome": "killed", **facts})
        elif found and line.get("event") == "end":
            found[-1] |= {"ended": stamp(line.get("time")), **facts}
    if found and found[-1]["ended"] is None and in_use(folder):
        found[-1]["outcome"] = "running"
    return found


def in_use(folder: Path) -> bool:
    """Whether another process holds the run's lock."""
    try:
        if sys.platform == "win32":
            with FileLock(folder / ".lock", timeout=0):
                return False
        import fcntl

        with (folder / ".lock").open("rb") as file:  # FileLock would write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (BlockingIOError, Timeout):
        return True
    except OSError:
        return False


def log_lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Time, stage and text of each line of run.log. The stage is the one at work, or empty between two of them."""
    stage = ""
    for line in read_text(folder / "run.log").splitlines():
        match = _STAMPED.match(line)
        when, text = (match[1], match[2]) if match else ("", line)
        if text.startswith("alignkit "):
            stage = ""
        if begun := _STAGE.match(text):
            stage = begun[1]
        yield when, stage, text
        if begun and begun[2]:  # the reports of all stages follow the last one
            stage = ""


def warnings_of(folder: Path) -> list[tuple[str, str]]:
    """Stage and text of each warning since the run was last started."""
    found: dict[tuple[str, str], None] = {}
    for _, stage, text in log_lines(folder):
        if text.startswith("alignkit "):
            found.clear()
        if match := _WARNING.match(text):
            found[match[1] or stage, match[2]] = None
    return list(found)


def incidents(folder: Path, starts: Sequence[Mapping[str, Any]]) -> list[Incident]:
    """What happened, in the order of time; the latest if there is too much."""
    found: list[Incident] = [
        {"when": when, "stage": stage, "text": text.removeprefix(f"{stage}: ")}
        for when, stage, text in log_lines(folder)
        if _INCIDENT.search(text) and not text.startswith(" ")
    ]
    for before, after in itertools.pairwise(starts):
        if before["outcome"] == "killed":
            found.append({"when": str(after["started"]), "stage": "", "text": "started again after it was killed"})
        elif before["outcome"] in ("failed", "interrupted", "waiting"):
            found.append({"when": str(after["started"]), "stage": "", "text": "started again"})
    return sorted(found, key=lambda item: item["when"])[-MOST:]


def stamp(seconds: Any) -> str:
    """`2026-11-23T03:56:08Z`; empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
