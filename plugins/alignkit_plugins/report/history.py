"""What happened to a run: its starts, how each ended, and what its log says went wrong."""

from __future__ import annotations

import fcntl
import re
import time
from pathlib import Path
from typing import Any

from alignkit.io.results import STARTS
from alignkit_plugins.report.files import each_object, read_text

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ?")
_WARNING = re.compile(r"^(?:(\S+): )?warning: (.*)$")
_STAGE = re.compile(r"^(\S+): (?:stage \d+ of \d+, \S+$|(done) in )")


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Each start of a run with its end: `started`, `ended`, `outcome`, `message` and the facts of
    the machine.

    time: of the start, in seconds since 1970. outcome: done, failed, interrupted, waiting (for
    labels), running, or killed if the process ended without a word.
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
        with (folder / ".lock").open("rb") as file:  # FileLock would write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def warnings_of(folder: Path) -> list[tuple[str, str]]:
    """Stage and text of each warning in run.log since the run was last started.

    The stage is the one at work, or empty between two of them.
    """
    found: dict[tuple[str, str], None] = {}
    stage = ""
    for line in read_text(folder / "run.log").splitlines():
        text = _STAMP.sub("", line)
        if text.startswith("alignkit "):
            found.clear()
            stage = ""
        begun = _STAGE.match(text)
        if begun:
            stage = begun[1]
        if match := _WARNING.match(text):
            found[match[1] or stage, match[2]] = None
        if begun and begun[2]:  # the reports of all stages follow the last one
            stage = ""
    return list(found)


def stamp(seconds: Any) -> str:
    """`2026-11-23T03:56:08Z`; empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
