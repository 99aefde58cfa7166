"""The stages of a run in a terminal: one line each for those that are done, running and waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from alignkit.io.printable import encodable, printable

WAITING = 6  # stages that have not begun, of which each has a line
LEAST_WIDTH = 70  # characters of a terminal that shows what does the stages
# Of several metrics, the first one that a stage has is its number: what a person asks first.
NUMBERS = ("reward", "accuracy", "loss")


class StageTree:
    """What a live display shows below the lines of stages that are done.

    note: what happens now, in words. bar: the progress of the running stage; None before it trains.
    """

    def __init__(self, stages: Mapping[str, str], encoding: str):
        """stages: what does each, by its name. encoding: of the terminal."""
        self.stages, self.note = stages, ""
        self.bar: ConsoleRenderable | None = None
        self._done: set[str] = set()
        self._current = ""
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._marks = ("✓", "○") if encodable("✓○", encoding) == "✓○" else ("*", "-")

    def enter(self, name: str) -> None:
        """A stage begins."""
        self._current, self.bar, self.note = name, None, ""
        self._first, self._last = {}, {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of a step of the running stage."""
        for name in metrics.keys() & NUMBERS:
            self._first.setdefault(name, metrics[name])
            self._last[name] = metrics[name]

    def number(self) -> str:
        """`reward -0.12 to 0.42`: the running stage's number at its first and at its last step."""
        name = next((name for name in NUMBERS if name in self._last), None)
        return f"{name} {self._first[name]:.3g} to {self._last[name]:.3g}" if name else ""

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
        """`✓ align  ppo  reward -0.12 to 0.42`. A narrow terminal has no room for what does the stage."""
        columns: list[tuple[str, Iterable[str]]] = [(name, self.stages)]
        if width >= LEAST_WIDTH:
            columns.append((self.stages[name], self.stages.values()))
        line = mark.append(" ") if mark else mark
        for text, column in columns:
            line.append(f"{printable(text):<{max(map(len, column))}}  ")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line.append(number)


def _spinning(line: Text) -> Table:
    """A line behind a sign that turns while something runs."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(Spinner("line"), line)
    return row
