"""Commands: how packages add them, what they return, and the arguments that several take.

Packages name modules with `register_commands` in the entry-point group `alignkit.commands`. It is
not that of plugins, so that `alignkit --help` loads none. A module of this group should import
little: it is loaded whenever `alignkit` starts.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from alignkit.errors import (
    AlignkitError,
    PluginError,
    Problem,
    did_you_mean,
    message_of,
    reason_of,
)
from alignkit.errors import refuse as refuse
from alignkit.io.text import Say, is_file, printable, redacted

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe, Stage

GROUP = "alignkit.commands"


class RegisterCommand(Protocol):
    """Adds a command to `alignkit`: a function with typer's annotations, or a `typer.Typer` with
    commands.
    """

    def __call__(self, command: Callable[..., Any] | typer.Typer, name: str = "") -> None: ...


def register_commands(register: RegisterCommand) -> None:
    """Commands: functions with typer's annotations, whose first docstring line is what `alignkit
    --help` shows.
    """


def add_commands(app: typer.Typer, without: Container[str]) -> None:
    """Add the commands of all packages but some. One that fails is a warning."""
    for entry in sorted(importlib.metadata.entry_points(group=GROUP)):
        if entry.name in without or getattr(entry.dist, "name", "") in without:
            continue
        try:
            entry.load().register_commands(partial(add_command, app))
        except (Exception, SystemExit) as error:
            print(
                printable(f"warning: no commands of {entry.name}: {reason_of(error)}"),
                file=sys.stderr,
            )


def add_command(
    app: typer.Typer, command: Callable[..., Any] | typer.Typer, name: str = ""
) -> None:
    """See `RegisterCommand`. Raises PluginError for a name that a command has already."""
    name = name or getattr(command, "__name__", "").replace("_", "-")
    others: list[Any] = [*app.registered_commands, *app.registered_groups]
    if name in [other.name for other in others]:
        raise PluginError(f"alignkit has a command '{name}' already")
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


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
        """Of the command."""
        return self.code if self.error is None else self.error.exit_code


def outcome(result: Result) -> str:
    """How a command ended, as JSON by `docs/assets/outcome.schema.json`; a number that is not
    finite is null.
    """
    problems: Sequence[Problem] = getattr(result.error, "problems", ())  # a recipe's
    if result.error is not None and not problems:
        message, _, help = message_of(result.error).removeprefix("error: ").partition("\nhelp: ")
        problems = [Problem(message, help=help)]
    errors = [
        {
            "code": result.exit_code,
            "message": redacted(problem.message),
            "file": redacted(problem.file),
            "line": problem.line,
            "column": problem.column,
            "help": redacted(problem.help),
        }
        for problem in problems
    ]
    document = {
        "exit_code": result.exit_code,
        "errors": errors,
        "kind": result.kind,
        "result": result.facts,
    }
    plain = json.loads(json.dumps(document, default=str), parse_constant=lambda name: None)
    return json.dumps(plain, indent=1)


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


def load(
    name: str,
    overrides: Sequence[str] | None,
    warn: Say = lambda text: print(printable(text), file=sys.stderr),
    only: str | None = None,
    until: str | None = None,
) -> Recipe:
    """Load the plugins, then the recipe. A broken plugin is a warning, unless it was given as a
    file.

    only, until: as options of `alignkit run`. Raises RecipeError for a stage that the recipe does
    not have.
    """
    from alignkit.io.results import RECIPE
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import load_recipe
    from alignkit.recipe.yaml import find_recipe

    if is_file(Path(name) / RECIPE):
        refuse(
            f"{name} is the folder of a run, not a recipe",
            f"`alignkit run {Path(name) / RECIPE}` continues it",
        )
    path = find_recipe(name)
    loaded = load_plugins()
    requested = {file.name for file in loaded.files}
    for broken in loaded.broken:
        if broken.distribution in requested:
            raise PluginError(str(broken))
    recipe = load_recipe(path, list(overrides or ()))
    for broken in loaded.broken:  # only now: errors of a recipe already mention broken plugins
        warn(f"warning: {broken}")
    if only and until:
        refuse("--only runs one stage, and --until several", "choose one of them")
    if last := only or until:
        names = (*recipe.stages,)
        end = names.index(stage_of(recipe, last).name)
        recipe = replace(recipe, chosen=names[end if only else 0 : end + 1])
    return recipe


def stage_of(recipe: Recipe, name: str) -> Stage:
    """The stage with a name. Raises RecipeError if the recipe does not have it."""
    if name not in recipe.stages:
        refuse(f"no stage '{name}'", did_you_mean(name, recipe.stages, "stages"))
    return recipe.stages[name]
