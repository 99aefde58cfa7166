"""The reference of commands, from their help texts: the parts `commands` and `exit codes` of
`docs/generate.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from alignkit.cli import program
from alignkit.errors import (
    DataError,
    NotReproduced,
    OutOfResource,
    PluginError,
    RecipeError,
    RemoteError,
    Repeated,
    RunFailed,
    Stopped,
)
from benchmarks.markdown import markdown_table

WHAT_TO_DO = {
    RunFailed: "Fix the cause, and repeat the command.",
    RecipeError: "Fix the mistakes that it lists.",
    PluginError: "`alignkit plugins` says what is broken, and why.",
    DataError: "Fix or skip these rows.",
    OutOfResource: (
        "[Use less memory](troubleshooting.md#it-runs-out-of-memory), or free some disk space."
    ),
    RemoteError: ("Fix the key or the address, and repeat the command."),
    NotReproduced: "The message names the likely cause.",
    Repeated: "The report names the rows, which [cleaning](data.md#cleaning) leaves out.",
    Stopped: "Label, if it waits for people. Then repeat the command.",
}
# Codes that no error of alignkit has.
OTHERS = [
    ("0", "Success.", ""),
    ("130", "Interrupted (Ctrl-C).", "Repeat the command."),
]


def commands() -> str:
    """A section per command, in the order of `alignkit --help`."""
    group: Any = typer.main.get_command(program())
    context = group.context_class(group, info_name="alignkit")
    return "\n".join(
        text
        for name, command in group.commands.items()
        for text in _sections(command, name, context)
    )


def _sections(command: Any, name: str, parent: Any) -> Iterator[str]:
    """The section of a command, and of each command of a group."""
    context = command.context_class(command, info_name=name, parent=parent)
    below = getattr(command, "commands", {})
    if not below or command.invoke_without_command:
        yield _section(command, context)
    for each_name, each in below.items():
        yield from _sections(each, each_name, context)


def _section(command: Any, context: Any) -> str:
    """What a command does, and its arguments and options; `--help` adds details and examples."""
    about = (command.help or "").partition("\n\n")[0]
    lines = [f"- `{names}`: {text}" for names, text in _records(command, context)]
    return "\n".join(
        [f"## {_plain(context.command_path)}\n", f"{' '.join(about.split())}\n", *lines, ""]
    )


def _records(command: Any, context: Any) -> Iterator[tuple[str, str]]:
    """The names and the meaning of each argument and option, as `--help` prints them."""
    for parameter in command.params:
        names, text = parameter.get_help_record(context)
        # Of an argument, `--help` says in angle brackets how it is parsed.
        yield re.sub(r" <.*>$", "", names), re.sub(r"  \[(.*)\]$", r" (\1)", text)


def _plain(path: str) -> str:
    """`alignkit labels merge` of `alignkit labels {STORE} merge`."""
    return re.sub(r" [\[{]\w+[]}](?= )", "", path)


def exit_codes() -> str:
    """The errors by their exit codes, and what to do about them."""
    rows = [(str(error.exit_code), _first(error), text) for error, text in WHAT_TO_DO.items()]
    rows = sorted([*rows, *OTHERS], key=lambda row: int(row[0]))
    return markdown_table(("code", "meaning", "what to do"), _escaped(rows)) + "\n"


def _first(error: type) -> str:
    """The first sentence of a docstring."""
    return " ".join((error.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."


def _escaped(rows: list[tuple[str, ...]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]
