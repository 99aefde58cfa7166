"""How answers are shown: one after the other, or two side by side if the terminal is wide enough."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignkit.io.printable import encodable, printable
from alignkit_apps.chat.session import Said

LEAST_COLUMN = 44  # characters of a column; narrower ones are hard to read
GAP = 4  # columns between two answers
PER_SECOND = 12  # how often answers that grow side by side are drawn


class Screen:
    """Answers one after the other, as plain text: what is written is never changed. Also for pipes."""

    def __init__(self, names: Sequence[str], console: Console):
        self.names, self.console = list(names), console
        self._column = 0  # of the last line

    def begin(self, name: str) -> None:
        """A policy begins to answer."""
        if len(self.names) > 1:
            self.line(f"{name}:", "bold")

    def more(self, text: str) -> None:
        """More of its answer."""
        shown = self._safe(text)
        self.console.file.write(shown)
        self.console.file.flush()
        self._column = len(shown) - shown.rfind("\n") - 1 if "\n" in shown else self._column + len(shown)

    def end(self, said: Said) -> None:
        """Its answer is complete. The text was shown, unless it is the best of several."""
        if said.of > 1:
            self.more(said.text)
        if self._column or not said.text:
            self.more("\n")
        if remark := remark_of(said):
            self.line(remark, "dim")

    def done(self) -> None:
        """All policies have answered."""

    def line(self, text: str, style: str = "") -> None:
        """A line that is no part of an answer."""
        self.console.print(Text(self._safe(text), style), soft_wrap=True)

    def _safe(self, text: str) -> str:
        return encodable(printable(text), self.console.encoding)


class SideBySide(Screen):
    """Two answers in columns: drawn again while they grow, and printed once when both are complete."""

    def __init__(self, names: Sequence[str], console: Console):
        super().__init__(names, console)
        self._texts, self._remarks = dict.fromkeys(names, ""), dict.fromkeys(names, "")
        self._current = ""
        self._live: Live | None = None

    def begin(self, name: str) -> None:
        self._current = name
        if self._live is None:
            self._texts, self._remarks = dict.fromkeys(self.names, ""), dict.fromkeys(self.names, "")
            self._live = Live(
                console=self.console, transient=True, refresh_per_second=PER_SECOND, get_renderable=self._growing
            )
            self._live.start()

    def more(self, text: str) -> None:
        self._texts[self._current] += self._safe(text)

    def end(self, said: Said) -> None:
        self._texts[self._current] = self._safe(said.text)
        self._remarks[self._current] = remark_of(said)

    def done(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.console.print(self._table(whole=True))

    def _growing(self) -> Table:
        return self._table(whole=False)

    def _table(self, whole: bool) -> Table:
        """Both answers; those that grow as far as they fit on the screen, with their ends."""
        width = (self.console.width - GAP) // len(self.names)
        table = Table.grid(padding=(0, GAP, 0, 0))
        cells: list[Any] = []
        for name in self.names:
            table.add_column(width=width, overflow="fold")
            lines = Text(self._texts[name]).wrap(self.console, width)
            cells.append(Text("\n").join(lines if whole else lines[-max(1, self.console.height - 4) :]))
        table.add_row(*(Text(self._safe(name), "bold") for name in self.names))
        table.add_row(*cells)
        if any(self._remarks.values()):
            table.add_row(*(Text(self._remarks[name], "dim") for name in self.names))
        return table


def remark_of(said: Said) -> str:
    """`[helpful 0.53, best of 8, stopped]`; empty if there is nothing to say."""
    scores = [f"{name} {'no score' if score is None else f'{score:.3g}'}" for name, score in said.rewards.items()]
    best = [f"best of {said.of}"] if said.of > 1 else []
    parts = [*scores, *best, *(["stopped"] if said.stopped else [])]
    return f"[{', '.join(parts)}]" if parts else ""


def screen(names: Sequence[str], console: Console | None = None) -> Screen:
    """The way to show answers that fits stdout."""
    console = console or Console(highlight=False, soft_wrap=False)
    wide = console.is_terminal and console.width >= len(names) * (LEAST_COLUMN + GAP)
    if len(names) > 1 and wide and not console.is_dumb_terminal:
        return SideBySide(names, console)
    return Screen(names, console)


def interactive() -> bool:
    """Whether a person types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()
