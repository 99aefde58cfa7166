"""The starts of a run, each with its end: starts.jsonl, a line when a run starts and one when it
ends; and other files of a run, as far as they were written.

A start without an end was killed. Only reports read it; results do not depend on it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit.errors import StageWaits, Stopped, message_of
from alignkit.io.results import STARTS, append_line, json_lines
from alignkit.runs.services import resume_command

_WARNING = re.compile(r"^\S+Z (?:(\S+): )?warning: (.*)$")


def write_start(folder: Path, recipe_folder: Path) -> None:
    """Append that a run starts.

    recipe_folder: whose commit is recorded, if it is in a git repository.
    """
    commit = commit_of(recipe_folder)
    _append(folder, "start", command=resume_command(), commit=commit, machine=machine())


def write_end(folder: Path, error: BaseException | None, peak_memory: str) -> None:
    """Append how a run ended. peak_memory: in words."""
    outcome, message = "done", ""
    if error is not None:
        outcome, message = "failed", message_of(error)
    if isinstance(error, StageWaits):
        outcome = "waiting"
    elif isinstance(error, KeyboardInterrupt | Stopped):
        outcome = "interrupted"
    _append(folder, "end", outcome=outcome, message=message, peak_memory=peak_memory)


def _append(folder: Path, event: str, **values: Any) -> None:
    # On a full disk the run itself says so where it loses a result.
    with suppress(OSError):
        append_line(folder / STARTS, {"event": event, "time": time.time(), **values})


def machine() -> dict[str, Any]:
    """The machine, without its name: interpreter, system, cores, memory in bytes, GPU."""
    import psutil

    facts: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    facts |= {"cores": os.cpu_count(), "memory": psutil.virtual_memory().total}
    torch = sys.modules.get("torch")  # a run has loaded it by now
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def commit_of(folder: Path) -> str:
    """The commit that is checked out where a recipe is; empty if that is no git repository."""
    words = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    with suppress(OSError):
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return ""


# Reading


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Each start of a run with its end: `started`, `ended`, `outcome`, `message` and the rest.

    outcome: done, failed, interrupted, waiting (for labels), running, or killed if the process
    ended without a word.
    """
    found = list[dict[str, Any]]()
    for line in json_lines(folder / STARTS):
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(line["time"]))
        if line["event"] == "start":
            found.append({**line, "started": when, "ended": "", "outcome": "killed"})
        elif found:
            found[-1] |= {**line, "ended": when}
    if found and not found[-1]["ended"] and in_use(folder):
        found[-1]["outcome"] = "running"
    return found


def in_use(folder: Path) -> bool:
    """Whether another process holds the run's lock."""
    try:
        with (folder / ".lock").open("rb") as file:  # FileLock would write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def warnings_of(folder: Path) -> list[tuple[str, str]]:
    """Stage, or an empty text, and text of each warning in run.log since the run last started."""
    log, found = folder / "run.log", list[tuple[str, str]]()
    if log.is_file():
        text = log.read_text("utf-8", "replace")
        last = re.split(r"^\S+Z alignkit .*$", text, flags=re.MULTILINE)[-1]
        for line in last.splitlines():
            if match := _WARNING.match(line):
                found.append((match[1] or "", match[2]))
    return found
