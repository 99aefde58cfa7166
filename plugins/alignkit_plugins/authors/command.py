"""`alignkit plugins`: what is installed, and what authors of plugins need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import refuse
from alignkit.io.text import printable
from alignkit_plugins.command_line.printing import DefaultGroup, files_written

plugins_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    name: Annotated[
        str | None,
        argument("NAME", "Name of a plugin, whose options are shown, or of a kind of plugins."),
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
    from alignkit.host.plugins import load_plugins

    loaded = load_plugins()
    if schema:
        from alignkit_plugins.recipe_tools.options import schema_text

        text = schema_text(loaded)
        return Result("recipe_schema", json.loads(text), lambda: print(text, end=""))
    from alignkit_plugins.authors import listing

    if name is None:
        rows, broken = listing.plugin_rows(loaded), list(map(str, loaded.broken))
        facts = {"plugins": rows, "broken": broken}
        return Result("plugins", facts, lambda: listing.show_names(rows, broken))
    plugins = listing.described(name, loaded)
    return Result("options", plugins, lambda: listing.show_options(name, plugins))


@plugins_app.command()
def new(
    name: Annotated[
        str,
        argument("NAME", "Name of the plugin in recipes, such as `calm` or `my_reward`."),
    ],
    kind: Annotated[
        str,
        option("KIND", "Kind of the plugin, as `alignkit plugins` lists them."),
    ] = "reward",
) -> Result:
    """Write a package with a plugin that works.

    It has a module, a recipe, a test, a README and a CI file. The module is the smallest example of
    its kind under your name. Nothing is ever replaced.

    \b
    Examples:
      alignkit plugins new calm
      alignkit plugins new closer --kind algorithm
    """
    from alignkit.host.plugins import load_plugins
    from alignkit_plugins.authors.new import write_package

    files = write_package(name, load_plugins(), kind)
    install = f"cd {files[0].parent} && pip install -e '.[test]' && pytest"
    return files_written(files, next=install)


@plugins_app.command()
def check(
    what: Annotated[
        str,
        argument("NAME|FILE", "Plugin to check: its name, that of its package, or a module."),
    ],
    options: Annotated[
        str,
        option("YAML", "Options by plugin: '{calm: {marks: \"?\"}}'."),
    ] = "{}",
) -> Result:
    """Check a plugin by the rules of its kind.

    It is checked by the kit of `alignkit.testing`, on the model `tiny`. What is printed are the
    rules that hold and, if several packages have a plugin of that name, its package.

    \b
    Examples:
      alignkit plugins check alignkit-reinforce
      alignkit plugins check sums.py --options '{sums: {strict: true}}'
    """
    from alignkit.host.plugins import load_plugins
    from alignkit.recipe.yaml import plain_data
    from alignkit_plugins.authors.checking import check_plugins

    path, values = Path(what), plain_data(options, "--options")
    loaded = load_plugins([path.resolve()] if path.is_file() else None)
    rows, lines = check_plugins(path.name, values, loaded)
    broken = [str(one) for one in loaded.broken if one.distribution == path.name]
    if not rows:
        refuse(
            f"{what} registers nothing that a kit checks, if it is installed",
            "; ".join([*lines, *broken]) or "name a plugin or an installed package, or FILE.py",
        )
    lines += [f"broken: {text}" for text in broken]
    facts = {"plugins": rows, "broken": broken}
    return Result("plugins", facts, lambda: print(printable("\n".join(lines))))
