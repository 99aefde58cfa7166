"""Options of raters that several commands take, and tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Rewards = Annotated[
    list[str] | None,
    typer.Option(metavar="REWARD", help="RUN/STAGE of a reward model, or a reward as in a recipe; repeatable."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(metavar="JUDGE", help="A judge as in a recipe, such as '{openai_judge: {...}}'; repeatable."),
]
PIPE_WIDTH = 100  # characters


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


def console() -> Console:
    """Stdout, with a fixed width if it is a pipe."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            """`alignkit plugins | head` is no error; rich would exit."""
            raise BrokenPipeError

    return Piped(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
