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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from alignkit import __version__
from alignkit.commands import GROUPS, Overrides, RecipeName, add_commands, announce, for_all, load
from alignkit.errors import (
    SIGNALS,
    AlignkitError,
    OutOfResource,
    PluginError,
    Problem,
    RecipeError,
    did_you_mean,
    message_of,
    no_disk,
    of_command,
    reason_of,
    stoppable,
)
from alignkit.outcome import Ended, Result, only_a_document

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe


# What people type for a command, and what to write.
_COMMANDS = {
    "train": "alignkit run RECIPE",
    "validate": "alignkit check RECIPE",
    "inspect": "alignkit check RECIPE STAGE",
    "plan": "alignkit check RECIPE --plan",
    "recipes": "alignkit init --list, or alignkit init DIR --from RECIPE",
    "schema": "alignkit plugins --schema",
    **dict.fromkeys(("report", "results"), "alignkit show RUN"),
    "compare": "alignkit show RUN RUN",
    "feedback": "alignkit labels",
    "agreement": "alignkit labels STORE",
}
# The same for options of commands that take a recipe, of which VALUE is what comes next.
_OPTIONS = {
    **dict.fromkeys(("--model", "--base", "-m"), "write: model.base=VALUE"),
    **dict.fromkeys(("--set", "-s"), "write: VALUE"),
    **dict.fromkeys(("--gpu", "--gpus", "--device"), "write: model.device=cuda; for several see docs/processes.md"),
    "--seed": "write: seed=VALUE",
    "--lr": "write: stages.STAGE.learning_rate=VALUE",
    "--epochs": "write: stages.STAGE.epochs=VALUE",
    **dict.fromkeys(("--resume", "--continue"), "repeat the same command, and the run resumes"),
}


class _Commands(TyperGroup):
    """Commands in groups, with the names of those that people look for; each says where it was interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # typer would end it without a word
            return _failed(error, ended=ctx.obj)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            raise RecipeError([Problem(f"no such command '{name}'", help=self._instead(name))])
        return super().resolve_command(ctx, args)

    def _instead(self, name: str) -> str:
        for group, command in self.commands.items():
            if name in getattr(command, "commands", ()):
                return f"write: alignkit {group} {name}"
        if name in _COMMANDS:
            return f"write: {_COMMANDS[name]}"
        return did_you_mean(name, self.commands) or "alignkit --help lists them"

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for group in dict.fromkeys([*GROUPS, *(getattr(one, "rich_help_panel", "") for one in self.commands.values())]):
            rows = [
                (f"{name:{width}}", command.get_short_help_str(formatter.width - 6 - width))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", "") == group
            ]
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    name="alignkit",
    cls=_Commands,
    help="""Align language models with human and AI feedback.

    \b
    Examples:
      alignkit run smoke
      alignkit init my-project --demos demos.jsonl
      alignkit chat runs/quickstart/align
    """,
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
    json: Annotated[
        bool, typer.Option("--json", help="Also after COMMAND: print its result, errors and exit code as JSON.")
    ] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Also after COMMAND: load a plugin.")
    ] = None,
    no_plugin: Annotated[
        list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Also after COMMAND: disable a plugin.")
    ] = None,
) -> None:
    pass  # `for_all` has read them: the commands of a disabled plugin are not even loaded


@app.command(rich_help_panel="Run")
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/NAME.")] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option("--tracker", metavar="NAME", help="Show metrics there too: tensorboard, wandb ..."),
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes of this machine that run it together.")
    ] = 1,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every line, rows of data and samples.")
    ] = False,
) -> Result | int:
    """Run a recipe. The same command resumes a run that was interrupted.

    \b
    Examples:
      alignkit run smoke
      alignkit run quickstart stages.align.algorithm=rejection_sampling
      alignkit run recipe.yaml seed=1 --out runs/seed1
      accelerate launch --num_processes 2 -m alignkit run recipe.yaml
    """
    announce(f"reads {recipe}")
    with stoppable():  # from here on, while modules are imported, too
        from alignkit.io.console import VERBOSE
        from alignkit.runs.start import RANK, launch, start

        if verbose:
            os.environ[VERBOSE] = "1"
        if processes > 1 and RANK not in os.environ:
            return launch(processes)

        def loaded(warn: Callable[[str], None]) -> Recipe:
            return load(recipe, overrides or [], warn, tracker or ())

        return start(loaded, out)


@cache
def program() -> typer.Typer:
    """The command line with the commands of all packages."""
    add_commands(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. argv: default: that of this process, which then ends."""
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a character that Latin-1 does not have must not end a command
    code = _main(argv)
    if argv is None:
        gc.freeze()  # Python would look for garbage among all of torch's objects, which takes seconds
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the command is complete
    return code


def _main(argv: Sequence[str] | None) -> int:
    given = list(argv) if argv is not None else sys.argv[1:]
    if "_ALIGNKIT_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & set(given):
        program()(given, prog_name="alignkit")  # which ends the process
    options = given[: given.index("--")] if "--" in given else given
    if json := "--json" in options:
        given.remove("--json")
    ended = Ended()
    with only_a_document(json) as document:
        code = copy_context().run(_called, given, ended, show=not json)  # `of_command` is this command's only
        if json:
            with nobody_need_read(document):
                print(ended.outcome(code).as_json(), file=document)
    return code


@contextmanager
def nobody_need_read(output: TextIO) -> Iterator[None]:
    """Let it be no error if nobody reads what is printed to the end, as in `alignkit plugins | head`."""
    try:
        yield
        output.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _called(given: Sequence[str], ended: Ended, show: bool) -> int:
    """Call a command and return the exit code. ended: gets its result, and what went wrong. show: print the result."""
    result: Any = None
    try:
        given, files, names = for_all(given)
        of_command.set((files, names))
        with nobody_need_read(sys.stdout):
            result = program()(given, prog_name="alignkit", standalone_mode=False, obj=ended)
        if isinstance(result, Result):
            ended.result = result
            if show:
                with nobody_need_read(sys.stdout):
                    result.show()
            if result.error is not None:
                raise result.error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # the parser's library ends the process if nobody reads on
            return 0
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{reason_of(error)}, at {last.filename}:{last.lineno}; a command ends only when it is complete"
        return _failed(PluginError(text), given, ended)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, given, ended)
    if isinstance(result, int):
        return result
    return 0


def _failed(error: BaseException, given: Sequence[str] = (), ended: Ended | None = None) -> int:
    """Print what went wrong and return the exit code. ALIGNKIT_DEBUG=1 adds the traceback. ended: gets it, too."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return RecipeError.exit_code
    if hasattr(error, "format_message"):  # the command-line parser's usage errors
        error = _usage_error(error, given)
    if isinstance(error, ValueError) and "null byte" in str(error):  # raised by older versions of typer
        error = RecipeError([Problem("an argument has a NUL character, which no path can have")])
    if type(error).__name__ == "Abort":
        return 130
    if not isinstance(error, AlignkitError):
        error = no_disk(error) or error
    interrupted = isinstance(error, KeyboardInterrupt)
    if os.environ.get("ALIGNKIT_DEBUG", "") not in ("", "0") and not interrupted:
        traceback.print_exception(error)
    from alignkit.io.console import Reporter

    Reporter().say(message_of(error))
    if ended is not None:
        ended.error = error
    if isinstance(error, AlignkitError):
        return error.exit_code
    return 130 if interrupted else OutOfResource.exit_code if isinstance(error, MemoryError) else 1


def _usage_error(error: Any, given: Sequence[str]) -> RecipeError:
    """A mistake in the arguments, printed like all others. given: the arguments."""
    error.message = _expected(error) or error.message
    text, _, near = error.format_message().rstrip(".").partition(". Did you mean ")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "alignkit"
    help = f"did you mean {near}" if near else f"{path} --help lists arguments and options"
    if type(error).__name__ == "MissingParameter" and (example := _example(context)):
        help = f"for example: {example}; {help}"
    option = getattr(error, "option_name", None)
    if option and not hasattr(error, "possibilities"):  # the option exists, and has no value
        text, help = f"{option} has no value", f"write it after the option: {option} VALUE"
    elif option:
        text = f"no such option {option}"
        near = did_you_mean(
            option.lstrip("-"), [one.lstrip("-") for one in getattr(error, "possibilities", None) or ()]
        )
        help = near.replace("'", "'--", 1) or help
        if path.split()[-1] in ("run", "check") and option in _OPTIONS:
            words = [
                part for word in [*given, "VALUE"] for part in (word.split("=", 1) if word.startswith("-") else [word])
            ]
            help = _OPTIONS[option].replace("VALUE", words[words.index(option) + 1])
    return RecipeError([Problem(text[:1].lower() + text[1:], help=help)])


def _expected(error: Any) -> str:
    """`expected a whole number, at least 1, got 'x'`, for what the parser's library says; empty if it is no number."""
    cause = error.__cause__
    kind = getattr(cause, "title", "").removeprefix("constrained-")
    if kind not in ("int", "float"):
        return ""
    info = getattr(getattr(error.param, "type_descriptor", None), "parameter_info", None)
    limits = {"at least": getattr(info, "min", None), "at most": getattr(info, "max", None)}
    words = [f", {word} {limit}" for word, limit in limits.items() if limit is not None]
    what = "a whole number" if kind == "int" else "a number"
    return f"expected {what}{''.join(words)}, got '{cause.errors()[0]['input']}'"


def _example(context: Any) -> str:
    """The first example in a command's help; empty without one."""
    lines = (context.command.help or "").splitlines() if context is not None else []
    return next((line.strip() for line in lines if line.startswith("  alignkit ")), "")
