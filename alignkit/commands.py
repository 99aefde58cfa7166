"""Commands: how packages add them, and the arguments that several take.

Packages name modules with `register_commands` in the entry-point group `alignkit.commands`. It is not that of plugins,
so that `alignkit --help` loads none. A module of this group should import little: it is loaded whenever `alignkit`
starts.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import pluggy
import typer
from typer.core import TyperGroup

from alignkit import __version__
from alignkit.errors import PluginError, Problem, RecipeError, did_you_mean, message_of, of_command, reason_of
from alignkit.hookspecs import hookspec
from alignkit.io.text import is_file, printable

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe

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
    without = set(of_command.get()[1])
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
    if entry.dist is not None:
        return entry.dist.name
    return ""


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


class DefaultGroup(TyperGroup):
    """A group of commands that is a command itself: `alignkit plugins ppo` next to `alignkit plugins new`.

    Words that do not begin with the name of a command are arguments of the group's callback, which is registered with
    `invoke_without_command=True`. It is called before a command of the group, too, and returns if its
    `context.invoked_subcommand` is one.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, and the arguments if no command of the group is called."""
        params = super().get_params(ctx)
        alone = ctx.command is self and ctx.invoked_subcommand is None
        if alone:
            return params
        return [param for param in params if param.param_type_name == "option"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx.invoked_subcommand = args[0]
        else:
            ctx.allow_interspersed_args = True
            ctx.allow_extra_args = False
            self._refuse_several(ctx, [word for word in args if not word.startswith("-")])
        return super().parse_args(ctx, args)

    def _refuse_several(self, ctx: Any, words: list[str]) -> None:
        """Refuse more than one argument: the first is most likely meant as a command."""
        if len(words) > 1:
            got = " and ".join(repr(word) for word in words[:2])
            help = did_you_mean(words[0], self.commands) or f"its commands: {', '.join(sorted(self.commands))}"
            refuse(f"'{ctx.command_path}' takes one argument, or a command first; got {got}", help)


def _recipe_names(start: str) -> list[str]:
    """Completions of a recipe: the shipped ones, folders and files."""
    from glob import escape, glob

    from alignkit.recipe.yaml import shipped

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


def for_all(given: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """The arguments without `--plugin` and `--no-plugin`, wherever they are; the files, and the names, of these."""
    rest, files, names, words = list[str](), list[Path](), list[str](), iter(given)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif option not in ("--plugin", "--no-plugin"):
            rest.append(word)
        elif not (value := value if equals else next(words, "")) or value.startswith("--"):
            refuse(f"{option} has no value", f"write it after the option: {option} VALUE")
        elif option == "--plugin":
            files.append(Path(value))
        else:
            names.append(value)
    return rest, files, names


def announce(text: str) -> None:
    """Say at once in a terminal what a command does: what it imports next takes seconds."""
    if sys.stderr.isatty():
        print(printable(f"alignkit {__version__} {text}"), file=sys.stderr, flush=True)


def load(
    name: str,
    overrides: Sequence[str] | None,
    warn: Callable[[str], None] = lambda text: print(printable(text), file=sys.stderr),
    trackers: Sequence[str] = (),
) -> Recipe:
    """Load the plugins, then the recipe. A broken plugin is a warning, unless it was given as a file."""
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import load_recipe

    for key, value in itertools.pairwise(overrides or ()):
        if not any("=" in word or word.startswith("~") for word in (key, value)):
            refuse(f"an override is one word, KEY=VALUE, not '{key}' and '{value}'", f"write {key}={value}")
    path = _recipe_file(name)
    loaded = load_plugins()
    requested = {file.name for file in loaded.files}
    for broken in loaded.broken:
        if broken.distribution in requested:
            raise PluginError(str(broken))
    recipe = load_recipe(path, list(overrides or ()), loaded.registry, trackers)
    for broken in loaded.broken:  # only now: errors of a recipe already mention broken plugins
        warn(f"warning: {broken}")
    return recipe


def _recipe_file(name: str) -> Path:
    """The file of a recipe. Raises RecipeError, also for a run's folder and for data."""
    from alignkit.io.results import RECIPE
    from alignkit.recipe.yaml import find_recipe

    if is_file(Path(name) / RECIPE):
        help = f"`alignkit show {name}` shows it; `alignkit run {Path(name) / RECIPE} --out {name}` continues it"
        refuse(f"{name} is the folder of a run, not a recipe", help)
    if name.endswith((".jsonl", ".csv", ".tsv", ".parquet")):
        help = f"write a recipe for it: alignkit init --demos {name} (or --pairs, --prompts)"
        refuse(f"{name} holds data, not a recipe", help)
    return find_recipe(name)


def refuse(message: str, help: str = "") -> NoReturn:
    """Raise RecipeError for what a user typed. help: what to type instead."""
    raise RecipeError([Problem(message, help=help)])
