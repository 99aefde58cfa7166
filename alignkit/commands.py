"""Commands of packages: modules named in the entry-point group `alignkit.commands`, with `register_commands`.

The group is not that of plugins, so that `alignkit --help` loads none. A module of this group should import little: it
is loaded whenever `alignkit` starts.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any, Protocol

import pluggy
import typer

from alignkit.errors import PluginError, message_of, reason_of
from alignkit.extras import left_out, of_command
from alignkit.hookspecs import hookspec
from alignkit.io.text import printable

GROUP = "alignkit.commands"
GROUPS = ("Make", "Run", "Look", "People", "Ship", "Extend")  # the headings of `alignkit --help`


class RegisterCommand(Protocol):
    """Adds a command to `alignkit`: a function with typer's annotations, or a `typer.Typer` with commands of its own.

    group: the heading of `alignkit --help` under which it is.
    """

    def __call__(self, command: Callable[..., Any] | typer.Typer, name: str = "", group: str = GROUPS[-1]) -> None: ...


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Commands: functions with typer's annotations, whose first docstring line is what `alignkit --help` shows."""


def add_commands(app: typer.Typer) -> None:
    """Add the commands of all packages, alignkit's first. One that fails is a warning, and leaves out its own only."""
    found = importlib.metadata.entry_points(group=GROUP)
    without = {*left_out(), *of_command.get()[1]}
    for entry in sorted(found, key=lambda entry: (_package(entry) != "alignkit", _package(entry), entry.name)):
        if {entry.name, _package(entry)} & without:
            continue
        try:
            add_from(app, entry.load(), entry.name)
        except KeyboardInterrupt as error:
            print(message_of(error), file=sys.stderr)
            raise SystemExit(130) from None
        except BaseException as error:  # includes sys.exit() at import
            text = f"warning: no commands of {_package(entry)}, {entry.name} = {entry.value}: {reason_of(error)}"
            print(printable(text), file=sys.stderr)


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else ""


def add_from(app: typer.Typer, module: Any, name: str) -> None:
    """Add the commands of a module. name: for messages. Raises what its hook raises, and PluginError for a bad name."""
    manager = pluggy.PluginManager("alignkit")
    manager.add_hookspecs(sys.modules[__name__])
    manager.register(module, name=name)
    manager.check_pending()
    functions = [known.name or getattr(known.callback, "__name__", "") for known in app.registered_commands]
    taken = {name.replace("_", "-") for name in functions} | {str(known.name) for known in app.registered_groups}
    commands: dict[str, tuple[Callable[..., Any] | typer.Typer, str]] = {}

    def register(command: Callable[..., Any] | typer.Typer, name: str = "", group: str = GROUPS[-1]) -> None:
        if not callable(command):
            raise PluginError(f"register takes a function or a typer.Typer, not {command!r}")
        own = str(command.info.name) if isinstance(command, typer.Typer) else command.__name__.replace("_", "-")
        if (name or own) in taken | commands.keys():
            raise PluginError(f"alignkit has a command '{name or own}' already")
        commands[name or own] = command, group

    manager.hook.register_commands(register=register)
    for name, (command, group) in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=group)
        else:
            app.command(name, rich_help_panel=group)(command)
