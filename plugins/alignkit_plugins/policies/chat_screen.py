"""How answers are shown: one after the other, or two side by side if the terminal is wide
enough.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignkit.io.text import printable
from alignkit_plugins.policies.chat_session import Said

LEAST_COLUMN = 44  # characters of a column; narrower ones are hard to read
GAP = 4  # columns between two answers
PER_SECOND = 12  # how often answers that grow side by side are drawn


class Screen:
    """Answers one after the other as plain text, also for pipes; in a wide terminal two in columns
    that grow.
    """

    def __init__(self, names: Sequence[str], console: Console | None = None):
        self.names, self.console = list(names), console or Console(highlight=False, soft_wrap=False)
        wide = self.console.width >= len(names) * (LEAST_COLUMN + GAP)
        self.columns = (
            len(names) > 1
            and wide
            and self.console.is_terminal
            and not self.console.is_dumb_terminal
        )
        self._texts = dict.fromkeys(self.names, "")
        self._remarks = dict.fromkeys(self.names, "")
        self._current = ""
        self._live: Live | None = None

    def begin(self, name: str) -> None:
        """A policy begins to answer."""
        self._current = name
        self._texts[name] = self._remarks[name] = ""
        if self.columns and self._live is None:
            self._live = Live(
                console=self.console,
                transient=True,
                refresh_per_second=PER_SECOND,
                get_renderable=lambda: self._table(self.console.height - 4),
            )
            self._live.start()
        elif not self.columns and len(self.names) > 1:
            self.line(f"{name}:", "bold")

    def more(self, text: str) -> None:
        """More of its answer."""
        shown = printable(text)
        self._texts[self._current] += shown
        if not self.columns:
            self.console.file.write(shown)
            self.console.file.flush()

    def end(self, said: Said) -> None:
        """Its answer is complete."""
        self._remarks[self._current] = remark_of(said)
        if self.columns:
            return
        if not self._texts[self._current].endswith("\n"):
            self.more("\n")
        if remark := remark_of(said):
            self.line(remark, "dim")

    def done(self) -> None:
        """All policies have answered."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.console.print(self._table())

    def line(self, text: str, style: str = "") -> None:
        """A line that is no part of an answer."""
        self.console.print(Text(printable(text), style), soft_wrap=True)

    def _table(self, most: int | None = None) -> Table:
        """All answers in columns. most: lines of each, the last ones; None: all."""
        width = (self.console.width - GAP) // len(self.names)
        table = Table.grid(padding=(0, GAP, 0, 0))
        cells = []
        for name in self.names:
            table.add_column(width=width, overflow="fold")
            lines = Text(self._texts[name]).wrap(self.console, width)
            cells.append(Text("\n").join(lines if most is None else lines[-max(1, most) :]))
        table.add_row(*(Text(printable(name), "bold") for name in self.names))
        table.add_row(*cells)
        table.add_row(*(Text(self._remarks[name], "dim") for name in self.names))
        return table


def remark_of(said: Said) -> str:
    """`[helpful 0.53, stopped]`; empty if there is nothing to say."""
    parts = [
        f"{name} {'no score' if score is None else f'{score:.3g}'}"
        for name, score in said.rewards.items()
    ]
    parts += ["stopped"] if said.exchange is None else []
    return f"[{', '.join(parts)}]" if parts else ""


def interactive() -> bool:
    """Whether a person types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()
