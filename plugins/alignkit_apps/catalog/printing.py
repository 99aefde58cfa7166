"""Options of raters that several commands take, and tables on stdout."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.commands import Result
from alignkit.io.text import printable, wrapped

if TYPE_CHECKING:
    from rich.console import Console

    from alignkit.report import Report

Rewards = Annotated[
    list[str] | None,
    typer.Option(metavar="REWARD", help="RUN/STAGE of a reward model, or a reward as in a recipe; repeatable."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(metavar="JUDGE", help="A judge as in a recipe, such as '{openai_judge: {...}}'; repeatable."),
]
PIPE_WIDTH = 100  # characters


def reported(report: Report, kind: str = "report", facts: Any = None) -> Result:
    """A report as a command's result. facts: default: the report's parts."""
    shown = report.plain() if facts is None else facts
    return Result(kind, shown, lambda: print(report.text(console().width)))


def files_written(files: Sequence[Path], notes: Sequence[str] = (), next: str = "", text: str = "") -> Result:
    """Files as a command's result. notes: what a reader of them must know. text: default: all of these, in lines."""
    lines = [*map(str, files), *notes, *([f"next: {next}"] if next else [])]
    facts = {"files": files, "notes": notes, "next": next}
    return Result("files", facts, lambda: print(printable(text or "\n".join(lines))))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Console:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out = console()
    out.print(table)
    return out


def print_lines(text: str) -> None:
    """Print lines; a terminal would break them within words and numbers. A pipe gets each line whole."""
    if sys.stdout.isatty():
        width = console().width
        text = "\n".join(part for line in text.split("\n") for part in fitted(line, width))
    print(printable(text))


def fitted(line: str, width: int) -> list[str]:
    """A line in lines of at most `width` characters. Those below `  better  It depends` begin where its text does."""
    from rich.cells import cell_len

    if cell_len(line) <= width:
        return [line]
    named = re.match(r" +\S+ {2,}| +", line)
    lead = named.group() if named and len(named.group()) <= width // 2 else ""  # a long name leaves no room
    first, *others = wrapped(line[len(lead) :], width - len(lead), indent=2 * (not lead))
    return [lead + first, *(" " * len(lead) + other for other in others)]


def console() -> Console:
    """Stdout, with a fixed width if it is a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
