"""Arguments that several commands take, how a recipe and its plugins are read from them, and tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from alignkit.errors import PluginError, Problem, RecipeError
from alignkit.io.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from alignkit.recipe.schema import Recipe


def _recipe_names(start: str) -> list[str]:
    """Completions of a recipe: the shipped ones, folders and files."""
    from glob import escape, glob

    from alignkit.recipe.shipped import shipped

    found = sorted(Path(path) for path in glob(f"{escape(start)}*"))
    folders = [f"{path}/" for path in found if path.is_dir()]
    files = [str(path) for path in found if path.suffix in (".yaml", ".yml")]
    return [*(name for name in shipped() if name.startswith(start)), *folders, *files]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a recipe that comes with alignkit.",
        autocompletion=_recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides: a.b=c sets a key, ~a.b deletes it.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin from a file.")]
NoPlugins = Annotated[list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Disable a plugin.")]
Rewards = Annotated[
    list[str] | None,
    typer.Option(metavar="REWARD", help="RUN/STAGE of a reward model, or a reward as in a recipe; repeatable."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(metavar="JUDGE", help="A judge as in a recipe, such as '{openai_judge: {...}}'; repeatable."),
]
PIPE_WIDTH = 100  # characters


def load(
    name: str,
    overrides: Sequence[str] | None,
    files: Sequence[Path] | None,
    disabled: Sequence[str] | None,
    warn: Callable[[str], None] = lambda text: print(printable(text), file=sys.stderr),
) -> Recipe:
    """Load the plugins, then the recipe. A broken plugin is a warning, unless it was given as a file.

    So is a base model that no stage uses.
    """
    from alignkit.plugins import load_plugins
    from alignkit.recipe.bases import unused_bases
    from alignkit.recipe.load import load_recipe
    from alignkit.recipe.shipped import find_recipe

    path = find_recipe(name)
    loaded = load_plugins(files or (), disabled or ())
    requested = {file.name for file in files or ()}
    for broken in loaded.broken:
        if broken.distribution in requested:
            raise PluginError(str(broken))
    recipe = load_recipe(path, list(overrides or ()), loaded.registry)
    for warning in (*unused_bases(recipe), *loaded.registry.warnings.values()):
        warn(f"warning: {warning}")
    for broken in loaded.broken:  # only now: errors of a recipe already mention broken plugins
        warn(f"warning: {broken}")
    return recipe


def refuse(message: str, help: str = "") -> NoReturn:
    """Raise RecipeError for what a user typed. help: what to type instead."""
    raise RecipeError([Problem(message, help=help)])


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
