"""A run's console output, run.log, and the metrics files."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alignkit.io.text import duration, excerpt, printable, redacted, wrapped

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
PIPE_WIDTH = 80  # characters of a line of a result
PLAIN_SECONDS = 10.0  # between progress lines in a pipe
SAMPLE_SECONDS = 300.0  # between samples
VERBOSE = "ALIGNKIT_VERBOSE"  # 1: rows of data and samples are shown, and in a terminal every line
COLORS = {
    r"(?m)^error: .*$": "red",
    r"(?m)^(\S+: )?warning: .*$": "yellow",
    r"(?m)^(\S+: )?done in \S+": "green",
}
# Of a verdict, which continues in indented lines. A gain by what the policy was trained on is no proof.
VERDICTS = {
    r"(?m)^\S+ gained over \S+ by an independent \w+:.*(\n  .*)*": "green",
    r"(?m)^\S+ lost against .*(\n  .*)*": "red",
}


@dataclass
class Task:
    """What the bar shows: a stage, or a part of a step. total: 0 if it is not known. first: done before it began."""

    name: str
    total: int = 0
    unit: str = ""
    first: int = 0
    facts: str = ""
    note: str = ""
    sampled: float = -math.inf  # when a sample was shown

    def __post_init__(self) -> None:
        self.done, self.began = self.first, monotonic()

    @property
    def count(self) -> str:
        """`align iteration 3/10`"""
        if not self.total:
            return self.name
        return " ".join(filter(None, (self.name, self.unit, f"{self.done}/{self.total}")))

    @property
    def times(self) -> str:
        """`1m05s, 2m10s left`: since it began here, and what the rest takes at this pace."""
        elapsed = monotonic() - self.began
        new, rest = self.done - self.first, self.total - self.done
        left = f", {duration(elapsed / new * rest, digits=0)} left" if new > 0 and rest > 0 else ""
        return duration(elapsed, digits=0) + left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Table.grid(padding=(0, 1, 0, 0), expand=True, pad_edge=False)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(Text(self.count, "bold"), ProgressBar(self.total or None, self.done), self.times)
        yield line
        if self.facts or self.note:
            yield Text.assemble(self.facts, "  ", (self.note, "dim"), no_wrap=True, overflow="crop")


class Reporter:
    """Progress on stderr: a live bar in a terminal, plain lines in a pipe. Results go to stdout, all to the log.

    A terminal shows what happens in a stage next to the bar, and as lines only if ALIGNKIT_VERBOSE is set.
    """

    def __init__(self, err: Console | None = None, out: Console | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # for signs that a terminal's encoding does not have
        self.err = err or _console(stderr=True)
        self.out = out or _console(stderr=False)
        self.log = RunLog()
        self.live = self.err.is_terminal and not self.err.is_dumb_terminal
        self.verbose = os.environ.get(VERBOSE, "0") not in ("", "0")
        self.began = monotonic()  # when the command began
        self._stage = ""
        self._task: Task | None = None
        self._bar: Live | None = None
        self._next = 0.0  # when the next plain line is due

    def say(self, text: str) -> None:
        """Print one line on stderr, which the user must know."""
        self.log.write(text)
        self._print(text)

    def loading_torch(self) -> None:
        """Say, before torch is imported for the first time, what takes seconds."""
        if "torch" not in sys.modules:
            self.say("loading torch and transformers")

    def activity(self, text: str) -> None:
        """Say what happens now: a line in a pipe, a note at the bar in a terminal. A warning is a line."""
        if self._bar is None or self.verbose or "warning: " in text:
            self.say(text)
        else:
            self.log.write(text)
            self.note(text)

    def detail(self, text: str) -> None:
        """A line that few people want to see, such as a row of the data: in the log, and with ALIGNKIT_VERBOSE=1."""
        self.log.write(text)
        if self.verbose:
            self._print(text)

    def stage(self, name: str, number: int, count: int, plugin: str) -> None:
        """Say that a stage of the run starts."""
        self._stage = name
        self._show_stage()
        self.activity(f"{name}: stage {number} of {count}, {plugin}")

    def stage_ends(self, text: str) -> None:
        """Say what became of the stage: `done in 7s: groups 3`, or `unchanged, reused`."""
        self._stage = ""
        self.stop()
        self.say(text)

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        """Begin to train a stage of `total` steps or iterations, of which `done` are complete."""
        self._begin(Task(stage, total, unit, done))

    def advance(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that step `done` is complete. metrics: of a stage, whose last step always has a plain line."""
        task, now = self._task, monotonic()
        if task is None:
            return
        task.done = done
        if metrics is not None:
            task.facts = " ".join(f"{SHOWN[name]} {_short(metrics[name])}" for name in SHOWN if name in metrics)
        if now >= self._next or (metrics is not None and done >= task.total):
            self._next = now + PLAIN_SECONDS
            write = self.log.write if self.live else self.say
            write(" ".join(filter(None, (task.count, task.facts, f"({task.times})"))))

    def sample(self, prompt: str, response: str, facts: str = "") -> None:
        """A detail: what the model answers, at the first call, after the last step, and now and then.

        facts: such as `reward 0.42`.
        """
        task, now = self._task, monotonic()
        if task is None:
            return
        if now - task.sampled < (PLAIN_SECONDS if task.done >= task.total else SAMPLE_SECONDS):
            return
        task.sampled = now
        width = self.err.width if self.err.is_terminal else PIPE_WIDTH
        self.detail(f"{task.name}: a sample of {task.unit} {task.done}{f', {facts}' if facts else ''}")
        for who, text in (("prompt", prompt), ("response", response)):
            self.detail(f"  {who:<10}{excerpt(text, width - 12)}")

    def note(self, text: str) -> None:
        """Show the current activity below the live bar; a pipe does not show it."""
        if self._task is not None:
            self._task.note = printable(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many parts of some work are done; yields a function that is given their number.

        While other work is shown, this is its note. In a pipe, work that is done soon has no line.
        """
        if self._task is not None and self._task.total:
            before = self._task.note
            self.note(what)
            yield lambda done: self.note(f"{what} {done}/{total}")
            self.note(before)
            return
        self._begin(Task(f"{self._stage}: {what}" if self._stage else what, total), wait=PLAIN_SECONDS)
        try:
            yield self.advance
        finally:
            self.stop()
            self._show_stage()

    def stop(self) -> None:
        """Remove the live bar."""
        self._task = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def width(self) -> int:
        """Characters of a line on stdout: the terminal's, or else a fixed number."""
        if self.out.is_terminal:
            return self.out.width
        return PIPE_WIDTH

    def result(self, text: str) -> None:
        """Print a result on stdout."""
        if text:
            self.log.write(text)
            self.out = _printed(self.out, colored(text, VERDICTS))

    def _print(self, text: str) -> None:
        if self.err.is_terminal:  # which would break a line within words and numbers
            lines = [wrapped(line, self.err.width, indent=_indent(line) + 2) for line in text.split("\n")]
            text = "\n".join(chain.from_iterable(lines))
        self.err = _printed(self.err, colored(text))

    def _begin(self, task: Task, wait: float = 0.0) -> None:
        self.stop()
        self._task, self._next = task, task.began + wait
        if self.live:
            self._bar = Live(task, console=self.err, transient=True)
            self._bar.start()

    def _show_stage(self) -> None:
        """Show in a terminal that the stage does something whose length is not known."""
        if self.live and self._stage:
            self._begin(Task(self._stage))


def _console(stderr: bool) -> Console:
    """Stdout or stderr. In a notebook both are pipes: rich would show each line as a page, or a bar that moves up."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_jupyter:
        console = Console(stderr=stderr, highlight=False, force_jupyter=False, force_terminal=False)
    return console


def _printed(console: Console, text: Text) -> Console:
    """Print a text. A console that nobody reads any more becomes a quiet one: `| head` must not end a run."""
    try:
        console.print(text, soft_wrap=True)
    except (BrokenPipeError, SystemExit):  # rich exits
        return Console(quiet=True)
    return console


def colored(text: str, colors: Mapping[str, str] = COLORS) -> Text:
    """A text as a terminal shows it. colors: by pattern. Other outputs have none."""
    line = Text(printable(text))
    for pattern, style in colors.items():
        line.highlight_regex(pattern, style)
    return line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Metrics:
    """A stage's metrics.jsonl: one JSON object per step, each step once even if the run was killed and resumed."""

    def __init__(self, path: Path | None, size: int = 0, copies: Sequence[Path] = ()):
        """path: None if another process writes them. size: bytes at the last checkpoint. Later lines are removed,
        because their steps run again.

        copies: other files that new lines are appended to.
        """
        self.path, self.copies = path, copies
        self.follower: Callable[[Mapping[str, Any]], None] = lambda line: None  # is given each new line
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(size)

    def write(self, **values: Any) -> None:
        """Append one object, with the time in seconds since 1970.

        Floats have six significant digits. Numbers that JSON cannot hold become strings: "nan", "inf". Raises TypeError
        for a value named `time`.
        """
        if "time" in values:
            raise TypeError("a metric cannot be called 'time', which is when it was written")
        if self.path is None:
            return
        plain = {key: _plain(value) for key, value in values.items()} | {"time": round(time.time(), 3)}
        for path in (self.path, *self.copies):
            _append(path, json.dumps(plain, allow_nan=False) + "\n")
        self.follower(plain)

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

    What is said before `open` is kept until then.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._waiting = ""

    def open(self, path: Path) -> None:
        """Append to this file from now on."""
        self._path = path
        self._flush()

    def write(self, text: str) -> None:
        """Append a text without keys and control characters."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for line in printable(redacted(text)).split("\n"):
            self._waiting += f"{stamp} {line}".rstrip() + "\n"
        self._flush()

    def _flush(self) -> None:
        if self._path is None:
            return
        # A full disk ends a run where it loses a result; a line that is lost must not hide that error.
        with suppress(OSError):
            _append(self._path, self._waiting)
        self._waiting = ""


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
