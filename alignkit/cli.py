"""The command line. Results go to stdout, everything else to stderr; the exit code says what kind
of error occurred.

Each command imports what it needs when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import gc
import importlib.metadata
import io
import json
import os
import signal
import sys
import traceback
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import __version__
from alignkit.contract.commands import Overrides, RecipeName, Result, option
from alignkit.errors import PluginError, Problem, as_shown, message_of, reason_of, refuse
from alignkit.host import plugin_options
from alignkit.io.text import Say, printable, redacted
from alignkit.runs.signals import SIGNALS, stoppable

COMMANDS = "alignkit.commands"  # the group of entry points

app = typer.Typer(
    name="alignkit",
    help="""Align language models with human and AI feedback.

    Every command also takes --json, to print its result, errors and exit code as JSON; --plugin FILE, to load a plugin;
    and --no-plugin NAME, to disable one.

    \b
    Examples:
      alignkit run smoke
      alignkit init my-project demos.jsonl
      alignkit chat runs/quickstart/align
    """,
    add_completion=False,
    rich_markup_mode=None,
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


@app.command("run")
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        option("DIR", "Folder of the run. Default: runs/NAME, by the name of the recipe."),
    ] = None,
    only: Annotated[
        str | None,
        option(
            "STAGE", "Run only this stage, on the complete results of the stages that it needs."
        ),
    ] = None,
    until: Annotated[
        str | None,
        option("STAGE", "Run the stages up to this one, and leave the later ones."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe and its data, as alignkit check does, and run nothing.",
        ),
    ] = False,
    processes: Annotated[
        int,
        option("N", "Number of processes of this machine that run it together.", min=1),
    ] = 1,
    each: Annotated[
        list[str] | None,
        option("KEY=VALUES", "Run the recipe with each value, such as seed=3..7. Axes cross."),
    ] = None,
    jobs: Annotated[int, option("N", "Cells of --each that run at once.", min=1)] = 1,
    part: Annotated[str, option("I/N", "Run only this part of the cells of --each.")] = "",
) -> Any:
    """Run a recipe. The same command resumes a run that was interrupted. Another `seed` holds out the
    same rows.

    \b
    Examples:
      alignkit run smoke
      alignkit run quickstart stages.align.algorithm=rejection_sampling
      alignkit run recipe.yaml seed=1 --out runs/seed1
      alignkit run recipe.yaml --until sft
      alignkit run recipe.yaml --only report
      accelerate launch --num_processes 2 -m alignkit run recipe.yaml
    """

    def chosen(*warn: Say, more: Sequence[str] = ()) -> Any:
        from alignkit.recipe.load import load_named

        return load_named(recipe, [*(overrides or ()), *more], only, until, *warn)

    if not each and (part or jobs > 1):
        alone = "--part" if part else "--jobs"
        refuse(f"{alone} says which cells run, and there are none", "add --each KEY=VALUES")
    if each:
        words = [recipe, *(overrides or ())]
        for name, value in (("--only", only), ("--until", until), ("--processes", processes)):
            words += [name, str(value)] if value not in (None, 1) else []
        return _cells(chosen, words, each, out, jobs, part, dry_run)
    if dry_run:
        return _checked(chosen(), out)
    with stoppable():  # from here on, while modules are imported, too
        from alignkit.host.plugins import launcher
        from alignkit.runs.start import RANK, start

        if processes > 1 and RANK not in os.environ:
            raise typer.Exit(launcher().launch(processes))
        left = start(chosen, out)
    if isinstance(left, int):
        raise typer.Exit(left)
    return Result("run", left)


def _cells(load: Any, words: Sequence[str], each: Sequence[str], *options: Any) -> Result:
    """Run cells, with the plugins of this command."""
    from alignkit.io.console import Reporter
    from alignkit.runs.start import run_cells

    command, say = list(words), Reporter().say  # a warning once
    for name, files in plugin_options.items():
        for file in files:
            command += [name, str(file)]
    return run_cells(lambda more: load(say, more=more), command, each, *options)


def _checked(recipe: Any, out: Path | None) -> Result:
    """What plugins find out about a recipe without running it."""
    from alignkit.host.plugins import plugins

    for found in plugins().ask("plan", recipe, out):
        return found
    refuse("--dry-run: no plugin checks recipes", "`alignkit plugins` lists what is installed")


def add_commands(app: typer.Typer, without: Container[str]) -> None:
    """Add the commands of all packages but some. One that fails is a warning."""
    for entry in sorted(importlib.metadata.entry_points(group=COMMANDS)):
        if entry.name in without or getattr(entry.dist, "name", "") in without:
            continue
        try:
            entry.load().register_commands(partial(add_command, app))
        except (Exception, SystemExit) as error:
            from alignkit.host.registry import moved

            reason = f"{reason_of(error)}{moved(error)}"
            print(printable(f"warning: no commands of {entry.name}: {reason}"), file=sys.stderr)


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


@cache
def program(without: frozenset[str] = frozenset()) -> Any:
    """The command line with the commands of packages, as Click's group.

    without: names of packages and plugins whose code is not imported.
    """
    whole = copy(app)
    whole.registered_commands = [*app.registered_commands]
    whole.registered_groups = [*app.registered_groups]
    add_commands(whole, without)
    return typer.main.get_command(whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. argv: default: that of this process, which
    then ends.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that Latin-1 does not have must not end a command
        sys.stdout.reconfigure(errors="replace")
    if argv is not None:
        return _main(argv)
    code = _main(sys.argv[1:])
    gc.freeze()  # Python would look for garbage among all of torch's objects, which takes seconds
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the command is complete
    return code


def _main(words: Sequence[str]) -> int:
    if "--json" not in words:
        return _call(words, show=True).exit_code
    with _quiet_stdout():
        result = _call(words, show=False)
    with nobody_need_read():
        print(outcome(result))
    return result.exit_code


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


def _call(words: Sequence[str], show: bool) -> Result:
    """Call a command; print its result, if asked to, and what went wrong."""
    result = Result()
    try:
        with nobody_need_read():
            result = _returned(words) or result
            if show:
                result.show()
    except typer.Exit as ended:
        return Result(code=ended.exit_code)
    except BaseException as raised:
        if os.environ.get("ALIGNKIT_DEBUG"):
            traceback.print_exc()
        result = replace(result, error=as_shown(raised))
    if result.error is not None:
        from alignkit.io.console import Reporter

        Reporter().say(message_of(result.error))
    return result


def _returned(words: Sequence[str]) -> Any:
    """What a command returns. Raises RecipeError for a mistake in its words."""
    rest = common_options(words) or ["--help"]
    command = program(frozenset(plugin_options["--no-plugin"]))
    try:
        with command.make_context("alignkit", rest) as context:
            return command.invoke(context)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a mistake in the words of a command
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", "alignkit")
        refuse(error.format_message(), f"{path} --help lists arguments and options")


def common_options(words: Sequence[str]) -> list[str]:
    """Set `plugin_options`; returns the words that are no options of every command."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    for name in plugin_options:
        parser.add_argument(name, dest=name, action="append", default=[])
    try:
        values, rest = parser.parse_known_args(words)
    except ArgumentError as error:
        refuse(str(error))
    del values.json
    plugin_options.update(vars(values))
    return rest


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Let all that is printed meanwhile go to stderr, by other processes, too."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def nobody_need_read() -> Iterator[None]:
    """Let it be no error if nobody reads what is printed to the end, as in `alignkit plugins |
    head`.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
