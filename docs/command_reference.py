"""The reference of commands, from their help texts: the parts `commands` and `exit codes` of
`docs/generate.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

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
    RemoteError: "Fix the key or the address, and repeat the command.",
    NotReproduced: "The message names the likely cause.",
    Repeated: "The report names the rows, which [cleaning](data.md#cleaning) drops.",
    Stopped: "Label, if it waits for people. Then repeat the command.",
}
# Codes that no error of alignkit has.
OTHERS = [
    ("0", "Success.", ""),
    ("130", "Interrupted (Ctrl-C).", "Repeat the command."),
]


def commands() -> str:
    """What each command does, with the names of its arguments and options, in the order of
    `alignkit --help`, which explains them.
    """
    group: Any = program()
    context = group.context_class(group, info_name="alignkit")
    rows = [
        _row(each, own)
        for name, command in group.commands.items()
        for each, own in _with_those_below(command, name, context)
    ]
    return markdown_table(("command", "what it does", "options"), _escaped(rows)) + "\n"


def _with_those_below(command: Any, name: str, parent: Any) -> Iterator[tuple[Any, Any]]:
    """A command, and each command of a group, with their contexts."""
    context = command.context_class(command, info_name=name, parent=parent)
    below = getattr(command, "commands", {})
    if not below or command.invoke_without_command:
        yield command, context
    for each_name, each in below.items():
        yield from _with_those_below(each, each_name, context)


def _row(command: Any, context: Any) -> tuple[str, str, str]:
    """The command with all that it takes by place or requires, the first paragraph of its help, and
    its other options.
    """
    words, options = [_plain(context.command_path)], list[str]()
    for parameter in command.params:
        # Of an argument, `--help` says in angle brackets how it is parsed
        name = re.sub(r" <.*>$", "", parameter.get_help_record(context)[0])
        if name.startswith("-") and not parameter.required:
            options.append(f"`{name}`")
        else:
            words.append(name)
    about = (command.help or "").partition("\n\n")[0]
    return f"`{' '.join(words)}`", " ".join(about.split()), ", ".join(options)


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


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]
