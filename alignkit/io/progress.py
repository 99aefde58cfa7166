"""A run's console output, and the metrics files."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alignkit.io.printable import printable

SHOWN = {"loss": "loss", "reward": "reward", "kl": "kl", "accuracy": "accuracy", "tokens_per_second": "tok/s"}
PIPE_WIDTH = 80  # characters of a line of a result
PLAIN_SECONDS = 10.0  # between progress lines in a pipe


class Reporter:
    """Progress on stderr: a live bar in a terminal, plain lines in a pipe. Results go to stdout."""

    def __init__(self) -> None:
        self.err = Console(stderr=True, highlight=False)
        self.out = Console(highlight=False)
        self.live = self.err.is_terminal
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._total = 0
        self._started = self._last = 0.0
        self._first = 0
        self._facts = ""

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        self.err.print(printable(text), markup=False, soft_wrap=True)

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps, of which `done` are complete."""
        self.stop()
        self._stage, self._total, self._first, self._facts = stage, total, done, ""
        self._started, self._last = time.monotonic(), 0.0
        if self.live:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=10),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[facts]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.err,
                transient=False,
            )
            self._task = self._progress.add_task(stage, total=total, completed=done, facts="")
            self._progress.start()

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """Report that step `done` of the stage is complete."""
        facts = " ".join(f"{SHOWN[name]} {_short(metrics[name])}" for name in SHOWN if name in metrics)
        self._facts = facts
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, facts=facts)
            return
        now = time.monotonic()
        if now - self._last < PLAIN_SECONDS and done < self._total:
            return
        self._last = now
        pace = (now - self._started) / max(1, done - self._first)
        left = duration(pace * (self._total - done), digits=0)
        self.say(f"{self._stage} {done}/{self._total} {facts} ({left} left)")

    def note(self, text: str) -> None:
        """Show the current activity of a step next to the live bar; a pipe does not show it."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, facts=f"{self._facts} [dim]{text}[/dim]")

    def stop(self) -> None:
        """Remove the live bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    @property
    def width(self) -> int:
        """Characters of a line on stdout: the terminal's, or else a fixed number."""
        return self.out.width if self.out.is_terminal else PIPE_WIDTH

    def result(self, text: str) -> None:
        """Print a result on stdout."""
        if text:
            self.out.print(printable(text), markup=False, soft_wrap=True)


class Metrics:
    """A stage's metrics.jsonl: one JSON object per step, each step once even if the run was killed and resumed."""

    def __init__(self, path: Path, size: int = 0):
        """size: bytes at the last checkpoint. Later lines are removed, because their steps run again."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(size)

    def write(self, **values: Any) -> None:
        """Append one object. Numbers that JSON cannot hold become strings: "nan", "inf"."""
        plain = {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")

    def sync(self) -> int:
        """Flush the file to disk; returns its size in bytes."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float, digits: int = 1) -> str:
    """`1m05s`, or `7.3s` below a minute."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest):02d}s" if minutes else f"{rest:.{digits}f}s"
