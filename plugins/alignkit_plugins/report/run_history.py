"""starts.jsonl: a line when a run starts, and one when it ends: the command, the machine, the
outcome.

A start without an end was killed. Reports need these facts; results do not depend on them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from alignkit.errors import StageWaits, Stopped, message_of
from alignkit.io.results import STARTS
from alignkit.io.text import redacted
from alignkit.runs.services import resume_command


def write_start(folder: Path, recipe_folder: Path) -> None:
    """Append that a run starts. recipe_folder: whose commit is recorded, if it is in a git
    repository.
    """
    commit = commit_of(recipe_folder)
    _append(folder, "start", command=resume_command(), commit=commit, **machine())


def write_end(
    folder: Path, error: BaseException | None, reused: Sequence[str], peak_memory: str
) -> None:
    """Append how a run ended. reused: the stages that did not run. peak_memory: in words."""
    _append(
        folder,
        "end",
        outcome=_outcome(error),
        message=redacted(message_of(error)) if error else "",
        reused=list(reused),
        peak_memory=peak_memory,
    )


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, StageWaits):
        return "waiting"
    return "interrupted" if isinstance(error, KeyboardInterrupt | Stopped) else "failed"


def _append(folder: Path, event: str, **values: Any) -> None:
    line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
    # On a full disk the run itself says so where it loses a result.
    with suppress(OSError), (folder / STARTS).open("ab+") as file:
        file.seek(0)
        # A process that was killed while it wrote leaves a part of a line
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")


def machine() -> dict[str, Any]:
    """The machine, without its name: interpreter, system, processor, cores, memory in bytes, GPU,
    threads.
    """
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpu": _gpu(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """The GPU's name; empty without one. torch is not loaded for it: a run has loaded it by now."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name())


def commit_of(folder: Path) -> str:
    """The commit that is checked out where a recipe is; empty if that is no git repository."""
    with suppress(OSError):
        words = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return ""
