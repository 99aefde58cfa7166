"""The stages of a run in a terminal: one line each for those that are done, running and waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from alignkit.io.printable import printable

WAITING = 6  # stages that have not begun, of which each has a line
LEAST_WIDTH = 70  # characters of a terminal that shows what does the stages
# Of several metrics, the first one that a stage has is its number: what a person asks first.
NUMBERS = {"reward": "reward", "accuracy": "accuracy", "loss": "loss"}


class Bar(Protocol):
    """What shows the progress of the running stage; see `alignkit.io.progress.Work`."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult: ...


class StageTree:
    """What a live display shows below the lines of stages that are done.

    note: what happens now, in words. bar: the progress of the running stage; None before it trains.
    """

    def __init__(self, stages: Mapping[str, str], encoding: str):
        """stages: what does each, by its name. encoding: of the terminal."""
        self.stages, self.note = stages, ""
        self.bar: Bar | None = None
        self._done: set[str] = set()
        self._current, self._began = "", time.monotonic()
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._marks = ("✓", "○") if _has(encoding, "✓○") else ("*", "-")

    def enter(self, name: str) -> None:
        """A stage begins."""
        self._current, self._began, self.bar, self.note = name, time.monotonic(), None, ""
        self._first, self._last = {}, {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of a step of the running stage."""
        for name in NUMBERS.keys() & metrics.keys():
            self._first.setdefault(name, metrics[name])
            self._last[name] = metrics[name]

    def number(self) -> str:
        """`reward -0.12 to 0.42`: the running stage's number at its first and at its last step."""
        name = next((name for name in NUMBERS if name in self._last), None)
        return f"{NUMBERS[name]} {self._first[name]:.3g} to {self._last[name]:.3g}" if name else ""

    def finished(self, name: str, took: str, width: int) -> Text:
        """The line of a stage that is done. took: such as `1m05s`, or `reused`."""
        self._done.add(name)
        line = self._line(Text(self._marks[0], "green"), name, self.number() if name == self._current else "", width)
        self._current, self.bar, self.note = "", None, ""
        end = Text(took, "dim" if took == "reused" else "")
        line.append(" " * max(2, width - line.cell_len - end.cell_len))
        return line.append_text(end)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self._current:
            yield from self._running(width)
        elif self.note:
            yield _spinning(Text(self.note, "dim", no_wrap=True, overflow="ellipsis"))
        waiting = [name for name in self.stages if name not in self._done and name != self._current]
        for name in waiting[:WAITING]:
            line = self._line(Text(self._marks[1]), name, "", width)
            line.stylize("dim")
            yield line
        if len(waiting) > WAITING:
            yield Text(f"  and {len(waiting) - WAITING} more", "dim")

    def _running(self, width: int) -> Iterator[Any]:
        line = self._line(Text(), self._current, "", width - 2)
        line.stylize("bold")
        yield _spinning(line)
        if self.bar is not None:
            yield self.bar
        elif self.note:
            yield Text(f"  {self.note}", "dim", no_wrap=True, overflow="ellipsis")

    def _line(self, mark: Text, name: str, number: str, width: int) -> Text:
        """`✓ align  ppo  reward -0.12 to 0.42`. What does the stage is left out where the terminal is narrow."""
        columns = [(name, self.stages)] if width < LEAST_WIDTH else [(name, self.stages), (self.stages[name], None)]
        line = mark.append(" ") if mark else mark
        for text, stages in columns:
            longest = max(map(len, stages or self.stages.values()))
            line.append(f"{printable(text):<{longest}}  ")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line.append(number)


def _spinning(line: Text) -> Table:
    """A line behind a sign that turns while something runs."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(Spinner("line"), line)
    return row


def _has(encoding: str, signs: str) -> bool:
    try:
        signs.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
