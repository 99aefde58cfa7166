"""The command line. Results go to stdout, everything else to stderr; the exit code says what kind of error occurred.

Each command imports what it needs when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import __version__
from alignkit.author import blaming
from alignkit.errors import AlignkitError, OutOfResource, PluginError, disk_is_full
from alignkit.io.printable import printable

if TYPE_CHECKING:
    from alignkit.plugins import Plugins
    from alignkit.recipe.schema import Recipe
    from alignkit.registry import Registration
    from alignkit.runs.results import Result

app = typer.Typer(
    name="alignkit",
    help="Align language models with human and AI feedback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a recipe that comes with alignkit.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides: a.b=c sets a key, ~a.b deletes it.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin from a file.")]
NoPlugins = Annotated[list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Disable a plugin.")]
PluginName = Annotated[
    list[str] | None,
    typer.Argument(metavar="KIND NAME", help="Show the plugins of a kind, or the options of one name."),
]


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
    """Run a recipe. The same command resumes a run that was interrupted."""
    checked = _load(recipe, overrides, plugin, no_plugin)
    from alignkit.runs.run import run_recipe

    run_recipe(checked, out)


@app.command()
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read the data files.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also show what a run in this folder would reuse, and why not.")
    ] = None,
) -> None:
    """Check a recipe and its data files without running it, and show how the data are understood."""
    checked = _load(recipe, overrides, plugin, no_plugin)
    if data:
        from alignkit.runs.preflight import data_lines

        for line in data_lines(checked):
            print(printable(line))
    if out is not None:
        from alignkit.runs.plan import plan
        from alignkit.runs.run import Run

        for line in plan(Run(checked, out)):
            print(printable(line))
    print(printable(f"ok: {checked.name}: stages {' -> '.join(checked.stages)}"))


@app.command()
def plugins(what: PluginName = None, plugin: PluginFiles = None, no_plugin: NoPlugins = None) -> None:
    """List the installed plugins, or show the options of one.

    Broken plugins are listed with the reason. Examples: `plugins ppo`, `plugins step evaluate`, `plugins reward`.
    """
    from alignkit.plugins import load_plugins
    from alignkit.recipe import plugin_help

    loaded = load_plugins(plugin or (), no_plugin or ())
    if not what:
        _print_plugins(loaded)
    else:
        plugin_help.show(what, loaded.registry, _console())


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")],
    prune: Annotated[bool, typer.Option("--prune", help="Delete all results but the current ones.")] = False,
) -> None:
    """List a run's results: current ones, and earlier ones, which are restored when the recipe is changed back."""
    from alignkit.runs import results as found

    _print_results(found.results_of(folder))
    if prune:
        count, size = found.prune(folder)
        print(f"deleted {count} results, {size / 1e6:.0f} MB")


@app.command()
def schema(plugin: PluginFiles = None, no_plugin: NoPlugins = None) -> None:
    """Print the JSON schema of recipes, for editors.

    It covers all installed plugins. With `# yaml-language-server: $schema=FILE` as a recipe's first line, editors
    complete and check its keys.
    """
    import json

    from alignkit.plugins import load_plugins
    from alignkit.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(load_plugins(plugin or (), no_plugin or ()).registry), indent=1, ensure_ascii=False))


def _load(
    name: str, overrides: Sequence[str] | None, files: Sequence[Path] | None, disabled: Sequence[str] | None
) -> Recipe:
    """Load the plugins, then the recipe. A broken plugin is a warning, unless it was given as a file."""
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import find_recipe, load_recipe

    path = find_recipe(name)
    loaded = load_plugins(files or (), disabled or ())
    requested = {file.name for file in files or ()}
    for broken in loaded.broken:
        if broken.distribution in requested:
            raise PluginError(str(broken))
    recipe = load_recipe(path, list(overrides or ()), loaded.registry)
    for warning in loaded.registry.warnings.values():
        print(printable(f"warning: {warning}"), file=sys.stderr)
    for broken in loaded.broken:  # only now: errors of a recipe already mention broken plugins
        print(printable(f"warning: {broken}"), file=sys.stderr)
    return recipe


def _print_plugins(loaded: Plugins) -> None:
    from rich.table import Table
    from rich.text import Text

    from alignkit.registry import KINDS

    table = Table("kind", "name", "summary", "from", box=None, pad_edge=False, header_style="bold")
    for kind in KINDS:
        registrations = loaded.registry.registrations(kind)
        names = [registration.name for registration in registrations]
        for registration in registrations:
            note = " (several plugins have this name: write PACKAGE:NAME)" * (names.count(registration.name) > 1)
            table.add_row(*map(Text, (kind, registration.name, registration.summary + note, registration.origin)))
    console = _console()
    console.print(table)
    for broken in loaded.broken:
        console.print(Text(printable(f"broken: {broken}"), style="red"), soft_wrap=True)
    if sys.stdout.isatty():
        console.print("\n`alignkit plugins NAME` shows the options of a plugin.", style="dim")


def _print_results(results: Sequence[Result]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "result", "hash", "by", "finished", "MB", box=None, pad_edge=False, header_style="bold")
    for result in results:
        facts = (
            result.stage,
            result.state,
            result.hash[:12],
            result.plugin,
            result.finished,
            f"{result.size / 1e6:.1f}",
        )
        table.add_row(*map(Text, facts))
    _console().print(table)


def _console() -> Any:
    """Stdout; wide if it is a pipe, so that no table cell is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        with blaming(_registrations):
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


def _registrations() -> list[Registration]:
    from alignkit.plugins import plugins

    return plugins().registry.everything()


def _failed(error: Exception) -> int:
    """Print what went wrong and return the exit code. ALIGNKIT_DEBUG=1 adds the traceback."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # the command-line parser's usage errors
        error.show()
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        return 130
    if isinstance(error, AlignkitError):
        text, code = str(error), error.exit_code
    elif isinstance(error, MemoryError) or disk_is_full(error):
        text, code = f"out of memory or disk space: {error}", OutOfResource.exit_code
    else:
        text = f"unexpected {type(error).__name__}: {error} (set ALIGNKIT_DEBUG=1 for the traceback)"
        code = 1
    if os.environ.get("ALIGNKIT_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    print(printable(text if text.startswith("error: ") else f"error: {text}"), file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(printable(f"  {note}"), file=sys.stderr)
    return code
