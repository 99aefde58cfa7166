"""Options of raters that several commands take, and tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from alignkit.contract.commands import Result, argument, option
from alignkit.io.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from alignkit.contract.report import Report

Policies = Annotated[
    list[str],
    argument(
        "POLICY...",
        (
            "Policies: RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, or an id on "
            "the hub. Then overrides, KEY=VALUE, such as sampling.temperature=0 (default: 0.7) "
            "or engine.vllm.url=URL."
        ),
    ),
]
Rewards = Annotated[
    list[str] | None,
    option(
        "REWARD",
        "Reward that scores answers: RUN/STAGE of a reward model, or as in a recipe. Repeatable.",
    ),
]
Judges = Annotated[
    list[str] | None,
    option(
        "JUDGE", "Judge that compares answers, as in a recipe: '{openai_judge: {...}}'. Repeatable."
    ),
]
PIPE_WIDTH = 100  # characters


def reported(report: Report, kind: str = "report", facts: Any = None) -> Result:
    """A report as a command's result. facts: default: the report's parts."""
    shown = report.plain() if facts is None else facts
    return Result(kind, shown, lambda: print(report.text(console().width)))


def files_written(
    files: Sequence[Path], notes: Sequence[str] = (), next: str = "", text: str = ""
) -> Result:
    """Files as a command's result. notes: what a reader of them must know. text: default: all of
    these, in lines.
    """
    lines = [*map(str, files), *notes, *([f"next: {next}"] if next else [])]
    facts = {"files": files, "notes": notes, "next": next}
    return Result("files", facts, lambda: print(printable(text or "\n".join(lines))))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from alignkit.contract.report import Report, Table

    print(Report([Table("", columns, rows, keys=len(columns))]).text(console().width))


def print_lines(text: str) -> None:
    """Print lines, which a terminal breaks between words. A pipe gets each line whole."""
    from rich.text import Text

    console().print(Text(printable(text)), soft_wrap=not sys.stdout.isatty())


def console() -> Console:
    """Stdout, with a fixed width if it is a pipe."""
    from alignkit.io.console import Terminal

    return Terminal(width=None if sys.stdout.isatty() else PIPE_WIDTH)
