"""The command `alignkit plan`."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.arguments import NoPlugins, Overrides, PluginFiles, RecipeName, load, print_table
from alignkit.io.printable import printable

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="NxCARD", help="Plan for cards, such as 8xH100. Default: here."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run, for what it would reuse. Default: runs/NAME.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", help="Plan for N processes, as 'alignkit run' starts them."),
    ] = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Measure how fast this machine is.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Show the rows, tokens, memory and time of a run.

    It also shows what is cut, and what is reused. A stage that cannot fit is an error, with the nearest setting that
    fits. No weights are read.

    \b
    Examples:
      alignkit plan recipe.yaml
      alignkit plan recipe.yaml --gpus 8xH100
      alignkit plan recipe.yaml --processes 2 launcher.shard=true
      alignkit plan recipe.yaml model.quantization=nf4 --gpus L4 --json
    """
    from alignkit_apps.plan.cards import machine_of

    machine = machine_of(gpus) if gpus is not None else None
    overrides = [*(overrides or ()), *([] if processes is None else [f"launcher.processes={processes}"])]
    checked = load(recipe, overrides, plugin, no_plugin)
    from alignkit_apps.plan.plan import as_json, plan_recipe  # imports torch
    from alignkit_apps.plan.tables import memory_table, remarks, work_table

    def again(more: Sequence[str]) -> Recipe:
        return load(recipe, [*overrides, *more], plugin, no_plugin, lambda text: None)

    folder = out or Path("runs") / checked.name
    plans = plan_recipe(checked, folder, again, machine, probe=probe, say=_say)
    if json:
        print(jsons.dumps(as_json(checked, plans), indent=1))
        return
    print(printable(f"{checked.name} on {plans[0].machine.title}"))
    for table in (work_table(plans), memory_table(plans)):
        print()
        print_table(*table)
    print()
    for line in remarks(plans):
        print(printable(line))


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
