"""The command line. Results go to stdout, everything else to stderr; the exit code says what kind of thing failed.

Each command imports what it needs when it runs, so that `--help` costs nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import __version__
from alignkit.errors import AlignkitError, OutOfResource, PluginError

if TYPE_CHECKING:
    from alignkit.plugins import Plugins
    from alignkit.recipe.schema import Recipe

app = typer.Typer(
    name="alignkit",
    help="Align language models with human and AI feedback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Change values: a.b=c sets, ~a.b deletes.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin from a file.")]
NoPlugins = Annotated[list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Switch a plugin off.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"alignkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/NAME.")] = None,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Run a recipe, or continue it where it stopped."""
    checked = _load(recipe, overrides, plugin, no_plugin)
    from alignkit.runs.run import run_recipe

    run_recipe(checked, out)


@app.command()
def validate(
    recipe: RecipeName, overrides: Overrides = None, plugin: PluginFiles = None, no_plugin: NoPlugins = None
) -> None:
    """Check a recipe without running it."""
    checked = _load(recipe, overrides, plugin, no_plugin)
    print(f"ok: {checked.name}: stages {' -> '.join(checked.stages)}")


@app.command()
def plugins(plugin: PluginFiles = None, no_plugin: NoPlugins = None) -> None:
    """List what is installed, and what is broken and why."""
    from alignkit.plugins import load_plugins

    _print_plugins(load_plugins(plugin or (), no_plugin or ()))


def _load(
    name: str, overrides: Sequence[str] | None, files: Sequence[Path] | None, disabled: Sequence[str] | None
) -> Recipe:
    """Plugins, then the recipe; broken plugins are warnings unless they were given as files."""
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import find_recipe, load_recipe

    path = find_recipe(name)
    loaded = load_plugins(files or (), disabled or ())
    asked_for = {file.name for file in files or ()}
    for broken in loaded.broken:
        if broken.distribution in asked_for:
            raise PluginError(str(broken))
    recipe = load_recipe(path, list(overrides or ()), loaded.registry)
    for broken in loaded.broken:  # a wrong recipe's errors name them where they matter
        print(f"warning: {broken}", file=sys.stderr)
    return recipe


def _print_plugins(loaded: Plugins) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from alignkit.registry import KINDS

    table = Table("kind", "name", "summary", "from", box=None, pad_edge=False, header_style="bold")
    for kind in KINDS:
        registrations = loaded.registry.registrations(kind)
        names = [registration.name for registration in registrations]
        for registration in registrations:
            note = " (claimed twice: write PACKAGE:NAME)" if names.count(registration.name) > 1 else ""
            table.add_row(*map(Text, (kind, registration.name, registration.summary + note, registration.origin)))
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 200, highlight=False)
    console.print(table)
    for broken in loaded.broken:
        console.print(Text(f"broken: {broken}", style="red"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result: Any = app(list(argv) if argv is not None else None, prog_name="alignkit", standalone_mode=False)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `alignkit plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _failed(error)
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    """Tell what went wrong, without a traceback unless a developer asks for it."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command-line parser
        error.show()
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        return 130
    if isinstance(error, AlignkitError):
        text, code = str(error), error.exit_code
    elif isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        text, code = f"out of memory or disk: {error}", OutOfResource.exit_code
    else:
        text = f"unexpected {type(error).__name__}: {error} (ALIGNKIT_DEBUG=1 shows where)"
        code = 1
    if os.environ.get("ALIGNKIT_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    print(text if text.startswith("error: ") else f"error: {text}", file=sys.stderr)
    return code
