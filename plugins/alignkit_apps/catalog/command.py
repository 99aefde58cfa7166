"""The commands `plugins`, `recipes`, `schema` and `results`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.arguments import NoPlugins, PluginFiles, console, print_table
from alignkit.io.printable import printable

if TYPE_CHECKING:
    from alignkit.plugins import Plugins
    from alignkit_apps.catalog.results import Result

PluginName = Annotated[
    list[str] | None,
    typer.Argument(metavar="KIND NAME", help="Show the plugins of a kind, or the options of one name."),
]
recipes_app = typer.Typer(rich_markup_mode=None)


def plugins(what: PluginName = None, plugin: PluginFiles = None, no_plugin: NoPlugins = None) -> None:
    """List the installed plugins, or show the options of one.

    Broken plugins are listed with the reason.

    \b
    Examples:
      alignkit plugins reward
      alignkit plugins ppo
      alignkit plugins step evaluate
    """
    from alignkit.plugins import load_plugins
    from alignkit_apps.catalog import plugin_help

    loaded = load_plugins(plugin or (), no_plugin or ())
    if not what:
        _print_plugins(loaded)
    else:
        plugin_help.show(what, loaded.registry, console())


def results(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or one result: RUN/align@ppo.")],
    prune: Annotated[bool, typer.Option("--prune", help="Delete all results but the current ones.")] = False,
) -> None:
    """List a run's results, current and earlier ones.

    align@ppo is the newest result of the stage align by ppo; align@ppo~1 is the one before.
    evaluate, chat, serve and export take RUN/align@ppo. Earlier results are restored when the recipe is changed back.

    \b
    Examples:
      alignkit results runs/quickstart
      alignkit results runs/quickstart --prune
    """
    from alignkit.runs.files import RECIPE
    from alignkit_apps.catalog import results as found

    results = found.results_of(folder)
    _print_results(results, folder if (folder / RECIPE).is_file() else folder.parent)
    if prune:
        count, size = found.prune(folder)
        print(f"deleted {count} results, {size / 1e6:.0f} MB")


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes that come with alignkit, or copy one.

    \b
    Examples:
      alignkit recipes
      alignkit recipes copy quickstart my-project
    """
    if context.invoked_subcommand is None:
        from alignkit.recipe.shipped import shipped
        from alignkit_apps.catalog.copying import summary

        print_table(("name", "what it does"), [(name, summary(path)) for name, path in shipped().items()])


@recipes_app.command("copy")
def copy_shipped(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe that comes with alignkit.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to. Default: the current folder.")] = Path(),
) -> None:
    """Copy a recipe with the data and rewards that it names, to edit it.

    \b
    Example:
      alignkit recipes copy quickstart my-project
      alignkit run my-project/quickstart.yaml
    """
    from alignkit_apps.catalog.copying import copy_recipe

    for path in copy_recipe(name, folder):
        print(path)


def schema(plugin: PluginFiles = None, no_plugin: NoPlugins = None) -> None:
    """Print the JSON schema of recipes, for editors.

    It covers all installed plugins. With `# yaml-language-server: $schema=FILE` as a recipe's first line, editors
    complete and check its keys.

    \b
    Example:
      alignkit schema > recipe.schema.json
    """
    from alignkit.plugins import load_plugins
    from alignkit_apps.catalog.json_schema import schema_text

    print(schema_text(load_plugins(plugin or (), no_plugin or ()).registry), end="")


def _print_plugins(loaded: Plugins) -> None:
    from rich.text import Text

    from alignkit.plugins import KINDS

    rows = []
    for kind in KINDS:
        registrations = loaded.registry.registrations(kind)
        names = [registration.name for registration in registrations]
        for registration in registrations:
            note = " (several plugins have this name: write PACKAGE:NAME)" * (names.count(registration.name) > 1)
            rows.append((kind, registration.name, registration.summary + note, registration.origin))
    out = print_table(("kind", "name", "summary", "from"), rows)
    for broken in loaded.broken:
        out.print(Text(printable(f"broken: {broken}"), style="red"), soft_wrap=True)
    if sys.stdout.isatty():
        out.print("\n`alignkit plugins NAME` shows the options of a plugin.", style="dim")


def _print_results(results: Sequence[Result], run: Path) -> None:
    rows = [
        (item.name, item.state, item.finished, f"{item.size / 1e6:.1f}", str(item.folder.relative_to(run)))
        for item in results
    ]
    print_table(("result", "state", "finished", "MB", "folder"), rows)
