"""What several commands share: their groups, options of raters, and tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer.core import TyperGroup

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


class DefaultGroup(TyperGroup):
    """A group of commands that is a command itself: `alignkit plugins ppo` next to `alignkit
    plugins new`.

    Words that do not begin with the name of a command are arguments of the group's callback, which
    is registered with `invoke_without_command=True`. It is called before a command of the group,
    too, and returns if its `context.invoked_subcommand` is one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        below = ctx.meta[self._below] = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not below
        return super().parse_args(ctx, args)

    @property
    def _below(self) -> str:
        """The key in `meta`, which all groups of a command line share, that says whether the words
        name a command.
        """
        return f"{__name__}.below.{id(self)}"

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        if ctx.meta.get(self._below):
            return [param for param in params if param.param_type_name == "option"]
        return params
