"""The command line. Results go to stdout, everything else to stderr; the exit code says what kind of error occurred.

Each command imports what it needs when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from alignkit import __version__
from alignkit.commands import GROUPS, Overrides, RecipeName, Result, add_commands, load, outcome, refuse
from alignkit.errors import (
    SIGNALS,
    AlignkitError,
    Problem,
    RecipeError,
    as_shown,
    did_you_mean,
    message_of,
    plugin_options,
    stoppable,
)

# What people type for a command, and what to write.
_INSTEAD = {
    "train": "alignkit run RECIPE",
    "validate": "alignkit check RECIPE",
    "report": "alignkit show RUN",
    "merge": "alignkit labels merge",
    "compare": "alignkit show RUN RUN",
}


class _Commands(TyperGroup):
    """Commands under headings."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in _INSTEAD:
            refuse(f"no such command '{args[0]}'", f"write: {_INSTEAD[args[0]]}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for name, command in self.commands.items():
            text = command.get_short_help_str(formatter.width - 6 - width)
            sections.setdefault(getattr(command, "rich_help_panel", ""), []).append((name.ljust(width), text))
        for group, rows in sections.items():
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    name="alignkit",
    cls=_Commands,
    help="""Align language models with human and AI feedback.

    Every command also takes --json, to print its result, errors and exit code as JSON; --plugin FILE, to load a plugin;
    and --no-plugin NAME, to disable one.

    \b
    Examples:
      alignkit run smoke
      alignkit init my-project --demos demos.jsonl
      alignkit chat runs/quickstart/align
    """,
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


@app.command("run", rich_help_panel="Run")
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/NAME.")] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes of this machine that run it together.")
    ] = 1,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every line, rows of data and samples.")
    ] = False,
) -> Result:
    """Run a recipe. The same command resumes a run that was interrupted.

    \b
    Examples:
      alignkit run smoke
      alignkit run quickstart stages.align.algorithm=rejection_sampling
      alignkit run recipe.yaml seed=1 --out runs/seed1
      accelerate launch --num_processes 2 -m alignkit run recipe.yaml
    """
    with stoppable():  # from here on, while modules are imported, too
        from alignkit.io.console import VERBOSE
        from alignkit.runs.start import RANK, launch, start

        if verbose:
            os.environ[VERBOSE] = "1"
        if processes > 1 and RANK not in os.environ:
            raise typer.Exit(launch(processes))
        left = start(partial(load, recipe, overrides), out)
    if isinstance(left, int):
        raise typer.Exit(left)
    return Result("run", left)


@cache
def program() -> typer.Typer:
    """The command line with the commands of all packages."""
    add_commands(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. argv: default: that of this process, which then ends."""
    if argv is not None:
        return _main(argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a character that Latin-1 does not have must not end a command
    code = _main(sys.argv[1:])
    gc.freeze()  # Python would look for garbage among all of torch's objects, which takes seconds
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the command is complete
    return code


def _main(words: Sequence[str]) -> int:
    if "_ALIGNKIT_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & set(words):
        program()(words, prog_name="alignkit")  # which ends the process
    if "--json" not in words:
        return _call(words, show=True)[0]
    with _only_a_document() as document:
        code, result, error = _call([word for word in words if word != "--json"], show=False)
        with nobody_need_read(document):
            print(outcome(code, result, error), file=document)
    return code


def _call(words: Sequence[str], show: bool) -> tuple[int, Result, AlignkitError | None]:
    """Call a command; print its result, if asked to, and what went wrong. Returns the exit code, and both."""
    result = Result()
    try:
        with nobody_need_read(sys.stdout):
            result = _returned(words) or result
            if show:
                result.show()
        if result.error is None:
            return 0, result, None
        error = result.error
    except typer.Exit as ended:
        return ended.exit_code, result, None
    except BaseException as raised:
        if os.environ.get("ALIGNKIT_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        error = as_shown(raised)
    from alignkit.io.console import Reporter

    Reporter().say(message_of(error))
    return error.exit_code, result, error


def _returned(words: Sequence[str]) -> Any:
    """What a command returns. Raises RecipeError for a mistake in its words."""
    rest = take_plugin_options(words) or ["--help"]
    command = typer.main.get_command(program())
    try:
        with command.make_context("alignkit", rest) as context:
            return command.invoke(context)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # of a group of commands
            return _returned([*rest, "--help"])
        raise _usage_error(error) from None


def take_plugin_options(words: Sequence[str]) -> list[str]:
    """Set `plugin_options`; returns the other words."""
    for values in plugin_options.values():
        values.clear()
    rest, following = list[str](), iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        if option not in plugin_options:
            rest.append(word)
            continue
        if not equals:
            value = next(following, "")
        if not value or value.startswith("-"):
            refuse(f"{option} has no value", f"write {option} VALUE")
        plugin_options[option].append(value)
    return rest


def _usage_error(error: Any) -> RecipeError:
    """A mistake in the words of a command, as the parser's library tells it."""
    path = getattr(getattr(error, "ctx", None), "command_path", "alignkit")
    text, _, near = error.format_message().rstrip(".").partition(". Did you mean ")
    help = f"{path} --help lists arguments and options"
    if near:
        help = f"did you mean {near}"
    elif hasattr(error, "possibilities"):  # an unknown option
        text = f"no such option {error.option_name}"
        options = [option.strip("-") for option in error.possibilities or ()]
        if near := did_you_mean(error.option_name.strip("-"), options):
            help = near.replace("'", "'--", 1)
        elif path in ("alignkit run", "alignkit check"):
            help = f"keys of the recipe have no dashes: model.base=NAME, stages.STAGE.learning_rate=1e-5; {help}"
    return RecipeError([Problem(text[:1].lower() + text[1:], help=help)])


@contextmanager
def _only_a_document() -> Iterator[TextIO]:
    """Stdout for one document; all else that is printed meanwhile goes to stderr, by other processes, too."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(stdout, "w", encoding="utf-8", closefd=False) as document:
            with redirect_stdout(sys.stderr):
                yield document
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def nobody_need_read(output: TextIO) -> Iterator[None]:
    """Let it be no error if nobody reads what is printed to the end, as in `alignkit plugins | head`."""
    try:
        yield
        output.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
