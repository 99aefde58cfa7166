"""Commands: how packages add them, what they return, and the arguments that several take.

Packages name modules with `register_commands` in the entry-point group `alignkit.commands`. It is
not that of plugins, so that `alignkit --help` loads none. A module of this group should import
little: it is loaded whenever `alignkit` starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import typer

from alignkit.errors import AlignkitError


class RegisterCommand(Protocol):
    """Adds a command to `alignkit`: a function with typer's annotations, or a `typer.Typer` with
    commands.
    """

    def __call__(self, command: Callable[..., Any] | typer.Typer, name: str = "") -> None: ...


def register_commands(register: RegisterCommand) -> None:
    """Commands: functions with typer's annotations, whose first docstring line is what `alignkit
    --help` shows.
    """


@dataclass(frozen=True)
class Result:
    """What a command returns, for programs and for people.

    kind: the name of its schema in `docs/assets/outcome.schema.json`; empty if there is none.
    facts: plain data and paths. show: prints the result. error: how the command then ends. code:
    its exit code without an error.
    """

    kind: str = ""
    facts: Any = None
    show: Callable[[], object] = lambda: None
    error: AlignkitError | None = None
    code: int = 0

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return self.code if self.error is None else self.error.exit_code


def option(metavar: str, help: str, *names: str, **more: Any) -> Any:
    """An option of a command, in its annotation. metavar: what `--help` shows for its value."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def argument(metavar: str, help: str) -> Any:
    """An argument of a command, in its annotation."""
    return typer.Argument(metavar=metavar, help=help)


RecipeName = Annotated[
    str,
    argument("RECIPE", "A recipe file, or the name of a recipe that comes with alignkit."),
]
Overrides = Annotated[
    list[str] | None,
    argument("KEY=VALUE", "Overrides of the recipe: a.b=c sets a key, and ~a.b deletes one."),
]
