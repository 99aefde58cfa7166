"""A run's console output, run.log, and the metrics files."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.text import Text

from alignkit.io.text import duration, printable, redacted

# Name of a metric -> what a person calls it.
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "response_tokens": "length",
    "accuracy": "accuracy",
    "rewards/margins": "margin",
    "tokens_per_second": "tok/s",
}
TOGETHER = 0.25  # share of parts that may be at work at once, of which the first says no pace
PLAIN_SECONDS = 10.0  # between progress lines in a pipe


class Terminal(Console):
    """Stdout or stderr; in a notebook, too, plain lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        if self.is_jupyter:  # Jupyter sets FORCE_COLOR, and cannot move its cursor
            super().__init__(highlight=False, force_jupyter=False, force_terminal=False, **options)

    def on_broken_pipe(self) -> None:
        """Be quiet from now on: `| head` must not end a run."""
        self.quiet = True


@dataclass
class Steps:
    """Steps of a stage, or parts of some work. first: how many were complete before it began. soon:
    the share of the others after which their pace is known.
    """

    name: str
    total: int
    first: int = 0
    soon: float = 0.0

    def __post_init__(self) -> None:
        self.began = monotonic()

    def line(self, done: int, facts: str = "") -> str:
        """`align iteration 3/10 loss 0.5 (1m05s, 2m10s left)`, at the pace so far."""
        elapsed, rest = monotonic() - self.began, self.total - done
        times = duration(elapsed, digits=0)
        if rest > 0 and done - self.first > self.soon * (self.total - self.first):
            times += f", {duration(elapsed / (done - self.first) * rest, digits=0)} left"
        return " ".join(filter(None, (f"{self.name} {done}/{self.total}", facts, f"({times})")))


class Reporter:
    """Progress on stderr: a live line in a terminal, plain lines in a pipe. Results go to stdout,
    all to the log.
    """

    def __init__(self, err: Console | None = None, out: Console | None = None) -> None:
        self.err = err or Terminal(stderr=True)
        self.out = out or Terminal()
        self.log = RunLog()
        self.live = self.err.is_terminal and not self.err.is_dumb_terminal
        self.began = monotonic()  # when the command began
        self._status = self.err.status("", spinner="line")
        self._doing = ""  # the stage, and how far it is
        self._steps: Steps | None = None
        self._next = 0.0  # when the next plain line is due
        self._warned = set[str]()

    def say(self, text: str) -> None:
        """Print a text on stderr; a warning once."""
        if "warning: " in text:
            if text in self._warned:
                return
            self._warned.add(text)
        self.log.write(text)
        self._print(self.err, text)

    def note(self, text: str = "") -> None:
        """Show on the live line what happens now; a pipe does not show it."""
        self._status.update(Text(printable(f"{self._doing}  {text}"), no_wrap=True))
        if self.live:
            self._status.start()

    def stage(self, name: str, number: int, count: int, plugin: str) -> None:
        """Say that a stage of the run starts."""
        self._doing = name
        self.say(f"{name}: stage {number} of {count}, {plugin}")

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        """Begin to train a stage of `total` steps or iterations, of which `done` are complete."""
        self._steps, self._next = Steps(f"{stage} {unit}", total, done), 0.0

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """Report that a step of the stage is complete. The last one always has a plain line."""
        steps = self._steps
        if steps is None:
            return
        facts = " ".join(
            f"{SHOWN[name]} {_short(metrics[name])}" for name in SHOWN if name in metrics
        )
        self._doing = steps.line(done, facts)
        self.note()
        if done == steps.total:
            self._next = 0.0
        self._plain(self._doing)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many parts of some work are done; yields a function that is given their number.

        In a pipe, work that is done soon, or that is a part of a step, has no line.
        """
        parts = Steps(": ".join(filter(None, (self._doing, what))), total, soon=TOGETHER)
        if self._steps is None:
            self._next = monotonic() + PLAIN_SECONDS

        def show(done: int) -> None:
            self.note(f"{what} {done}/{total}")
            if self._steps is None:
                self._plain(parts.line(done))

        try:
            yield show
        finally:
            if not self._doing:
                self.stop()

    def stop(self, text: str = "") -> None:
        """Remove the live line. text: what became of the stage, such as `align: done in 7s: groups
        3`.
        """
        self._status.stop()
        self._steps, self._doing = None, ""
        if text:
            self.say(text)

    def result(self, text: str) -> None:
        """Print a result on stdout."""
        if text:
            self.log.write(text)
            self._print(self.out, text)

    def _print(self, console: Console, text: str) -> None:
        console.print(Text(printable(text)), soft_wrap=True)

    def _plain(self, line: str) -> None:
        """A line on progress, if one is due."""
        if monotonic() < self._next:
            return
        self._next = monotonic() + PLAIN_SECONDS
        self.log.write(line)
        if not self.live:
            self._print(self.err, line)


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


class Metrics:
    """A stage's metrics.jsonl: one JSON object per step, each step once even if the run was killed
    and resumed.
    """

    def __init__(
        self,
        path: Path | None,
        size: int = 0,
        observe: Callable[..., None] = lambda **values: None,
        stage: str = "",
    ):
        """path: None if another process writes them. size: bytes at the last checkpoint. Later
        lines are removed, because their steps run again. observe: is called with each line's step and
        metrics.
        """
        self.path, self.observe, self.stage, self.lines = path, observe, stage, 0
        if path is None:
            return
        with path.open("ab") as file:
            file.truncate(size)

    def write(self, step: int | None = None, **values: Any) -> None:
        """Append one object, with the stage, its step, and the time in seconds since 1970.

        Floats have six significant digits. Numbers that JSON cannot hold become strings: "nan",
        "inf". Raises TypeError for a value named `time`.
        """
        named = {"stage": self.stage} if step is None else {"stage": self.stage, "step": step}
        plain = {key: _plain(value) for key, value in values.items()}
        line = dict(**named, **plain, time=round(time.time(), 3))
        if self.path is None:
            return
        _append(self.path, json.dumps(redacted(line), allow_nan=False) + "\n")
        self.lines += 1
        self.observe(step=self.lines if step is None else step, metrics=values)

    def sync(self) -> int:
        """Flush the file to disk; returns its size in bytes."""
        if self.path is None:
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


class RunLog:
    """run.log: all that a run has said, over all its resumptions, each line with its time (UTC).

    path: None until the run has its folder; earlier lines are kept until then.
    """

    path: Path | None = None
    _waiting = ""

    def write(self, text: str) -> None:
        """Append a text without keys and control characters."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for line in printable(redacted(text)).split("\n"):
            self._waiting += f"{stamp} {line}".rstrip() + "\n"
        if self.path is None:
            return
        # A full disk ends a run where it loses a result; a line that is lost must not hide that
        # error.
        with suppress(OSError):
            _append(self.path, self._waiting)
        self._waiting = ""


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
