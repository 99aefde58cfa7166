"""The command `alignkit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.arguments import NoPlugins, Overrides, PluginFiles, RecipeName, console, load


def inspect(
    recipe: RecipeName,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage that reads data or prompts.")],
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(metavar="N", help="Which row, counted from 1.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run, for data that its stages made.")
    ] = None,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Show a row as a stage sees it, and which tokens are learned.

    The row is shown as data, as the chat template renders it, and as tokens.

    \b
    Examples:
      alignkit inspect quickstart sft model.base=tiny
      alignkit inspect quickstart helpful model.base=tiny --row 7
    """
    checked = load(recipe, overrides, plugin, no_plugin)
    from alignkit_apps.inspect.row import inspect as inspected  # imports torch
    from alignkit_apps.inspect.row import show

    show(inspected(checked, stage, row, out or Path("runs") / checked.name), console())
