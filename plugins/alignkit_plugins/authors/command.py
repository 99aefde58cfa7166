"""`alignkit plugins`: what is installed, and what authors of plugins need."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from alignkit.commands import DefaultGroup, Result
from alignkit_plugins.printing import files_written

plugins_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Name of a plugin, whose options are shown, or of a kind of plugins.",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")
    ] = False,
) -> Result | None:
    """Show the installed plugins, or the options of one.

    Broken plugins are listed with the reason. The schema covers all installed plugins. With `#
    yaml-language-server: $schema=FILE` as a recipe's first line, editors complete and check keys.

    \b
    Examples:
      alignkit plugins
      alignkit plugins reward
      alignkit plugins ppo
      alignkit plugins --schema > recipe.schema.json
    """
    if context.invoked_subcommand is not None:
        return None
    from alignkit.plugins import load_plugins

    loaded = load_plugins()
    if schema:
        from alignkit_plugins.recipes.options import schema_text

        text = schema_text(loaded)
        return Result("recipe_schema", json.loads(text), lambda: print(text, end=""))
    from alignkit_plugins.authors import listing

    if name is None:
        rows, broken = listing.rows_of(loaded), [str(one) for one in loaded.broken]
        facts = {"plugins": rows, "broken": broken}
        return Result("plugins", facts, lambda: listing.show_names(rows, broken))
    plugins = listing.described(name, loaded)
    return Result("options", plugins, lambda: listing.show_options(name, plugins))


@plugins_app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the plugin in recipes, such as `calm` or `my_judge`."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(metavar="KIND", help="Kind of plugin: algorithm, reward, step or format."),
    ],
) -> Result:
    """Write a package with a plugin that works.

    It has a module, a recipe, a test, a README and a CI file. The module is the documented example
    of its kind under your name. Nothing is ever replaced.

    \b
    Examples:
      alignkit plugins new calm --kind reward
      alignkit plugins new ticket --kind format
    """
    from alignkit.plugins import load_plugins
    from alignkit_plugins.authors.new import write_package

    files = write_package(name, kind, load_plugins())
    install = f"cd {files[0].parent} && pip install -e '.[test]' && pytest"
    return files_written(files, next=install)
