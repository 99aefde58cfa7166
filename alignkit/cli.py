"""The command line. Results go to stdout, everything else to stderr; the exit code says what kind of error occurred.

Each command imports what it needs when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from alignkit import __version__
from alignkit.arguments import NoPlugins, Overrides, PluginFiles, RecipeName, load
from alignkit.commands import add_commands
from alignkit.errors import (
    AlignkitError,
    OutOfResource,
    Problem,
    RecipeError,
    message_of,
    no_disk,
)
from alignkit.io.leaving import leaving
from alignkit.io.printable import printable
from alignkit.plugin_errors import blaming

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe
    from alignkit.registry import Registration


class _Commands(TyperGroup):
    """Commands that say where they were interrupted; typer would end them without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            return _interrupted(error)


app = typer.Typer(
    name="alignkit",
    cls=_Commands,
    help="Align language models with human and AI feedback.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
    tracker: Annotated[
        list[str] | None,
        typer.Option("--tracker", metavar="NAME", help="Show metrics there too: tensorboard, wandb ..."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", help="Let N processes run it together, each on a GPU of its own."),
    ] = None,
) -> None:
    """Run a recipe. The same command resumes a run that was interrupted.

    \b
    Examples:
      alignkit run smoke
      alignkit run quickstart stages.align.algorithm=rejection_sampling
      alignkit run recipe.yaml seed=1 --out runs/seed1
      alignkit run recipe.yaml --processes 2
    """
    from alignkit.runs.start import start

    def loaded(warn: Callable[[str], None]) -> Recipe:
        chosen = [*(overrides or []), *([] if processes is None else [f"launcher.processes={processes}"])]
        checked = load(recipe, chosen, plugin, no_plugin, warn)
        if not tracker:
            return checked
        from alignkit.plugins import plugins
        from alignkit.recipe.trackers import with_trackers

        return with_trackers(checked, tracker, plugins().registry)

    if code := start(loaded, out):
        raise typer.Exit(code)


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
    """Check a recipe and its data files without running it.

    It also shows how the data are understood.

    \b
    Examples:
      alignkit validate recipe.yaml
      alignkit validate recipe.yaml model.base=tiny --no-data
      alignkit validate recipe.yaml --out runs/recipe
    """
    checked = load(recipe, overrides, plugin, no_plugin)
    if checked.processes > 1:
        from alignkit.plugins import launcher
        from alignkit.runs.world import World

        launcher().check(checked, World())
    if data:
        from alignkit.runs.preflight import data_lines

        for line in data_lines(checked):
            print(printable(line))
    if out is not None:
        from alignkit.runs.plan import plan as reuse
        from alignkit.runs.run import Run

        for line in reuse(Run(checked, out)):
            print(printable(line))
    print(printable(f"ok: {checked.name}: stages {' -> '.join(checked.stages)}"))


add_commands(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. argv: default: that of this process, which then ends."""
    if argv is None:
        _replace_unencodable()
    code = _main(argv)
    return leaving(code) if argv is None else code


def _replace_unencodable() -> None:
    """Print `?` for a character that stdout's encoding, such as Latin-1, does not have: it must not end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _main(argv: Sequence[str] | None) -> int:
    given = list(argv) if argv is not None else sys.argv[1:]
    if "_ALIGNKIT_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & set(given):
        app(given, prog_name="alignkit")  # which ends the process
    try:
        with blaming(_registrations):
            result: Any = app(list(argv) if argv is not None else None, prog_name="alignkit", standalone_mode=False)
    except KeyboardInterrupt as error:
        return _interrupted(error)
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
    if isinstance(error, ValueError) and "null byte" in str(error):  # raised by older versions of typer
        error = RecipeError([Problem("an argument has a NUL character, which no path can have")])
    if type(error).__name__ == "Abort":
        return 130
    if not isinstance(error, AlignkitError):
        error = no_disk(error) or error
    if os.environ.get("ALIGNKIT_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    from alignkit.io.progress import Reporter

    Reporter().say(message_of(error))
    if isinstance(error, AlignkitError):
        return error.exit_code
    return OutOfResource.exit_code if isinstance(error, MemoryError) else 1


def _interrupted(error: KeyboardInterrupt) -> int:
    """Say where the command was interrupted, if that is known, and return the exit code."""
    from alignkit.io.progress import Reporter

    Reporter().say(message_of(error))
    return 130
