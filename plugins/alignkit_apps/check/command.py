"""The command `alignkit check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.arguments import RecipeName, load, refuse
from alignkit.io.printable import printable
from alignkit.outcome import Result
from alignkit_apps.catalog.printing import console, print_lines, print_table

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe
    from alignkit_apps.check.plan import StagePlan


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STAGE] KEY=VALUE",
        help="A stage of which to show a row; overrides: a.b=c sets a key, ~a.b deletes it.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the run: show what it would reuse, and why not.")
]
Gpus = Annotated[
    str | None, typer.Option(metavar="NxCARD", help="Plan for cards, such as 8xH100. Default: this machine.")
]


def check(
    recipe: RecipeName,
    words: Words = None,
    row: Annotated[
        int | None, typer.Option(metavar="N", help="Which row of STAGE, counted from 1. Default: 1.")
    ] = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read the data files.")] = True,
    out: Out = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show rows, tokens, memory and time.")] = False,
    gpus: Gpus = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="In a plan, measure how fast this machine is.")
    ] = True,
) -> Result:
    """Check a recipe and its data without running it.

    It also shows how the data are understood. With a STAGE, it shows a row as that stage sees it: as data, as the chat
    template renders it, and as tokens, with those that are learned. With --plan, a stage that cannot fit is an error,
    with the nearest setting that fits. No weights are read.

    \b
    Examples:
      alignkit check recipe.yaml
      alignkit check recipe.yaml model.base=tiny --out runs/recipe
      alignkit check quickstart sft --row 7
      alignkit check recipe.yaml --plan --gpus 8xH100
    """
    stages = [word for word in words or () if "=" not in word and not word.startswith("~")]
    plan = plan or gpus is not None
    if len(stages) > 1:
        refuse(f"two stages: {', '.join(stages)}", "name one; an override is KEY=VALUE")
    if row is not None and not stages:
        refuse("--row is for a row of a stage", f"name the stage: alignkit check {recipe} STAGE --row {row}")
    if stages and plan:
        refuse("a plan is for all stages", "leave STAGE out, or --plan")
    overrides = [word for word in words or () if word not in stages]

    def loaded(more: Sequence[str] = (), warn: Callable[[str], None] = _say) -> Recipe:
        return load(recipe, [*overrides, *more], warn, lazy=True)

    if plan:
        return _plan(loaded, out, gpus, probe=probe)
    if stages:
        from alignkit_apps.check.row import inspect, show  # imports torch

        checked = loaded()
        found = inspect(checked, stages[0], 1 if row is None else row, out or Path("runs") / checked.name)
        return Result("row", asdict(found), lambda: show(found, console()))
    return _check(loaded(), out, data=data)


def _check(recipe: Recipe, out: Path | None, *, data: bool) -> Result:
    lines: list[str] = []
    if data:
        from alignkit_apps.check.data_lines import data_lines

        lines += data_lines(recipe)
    if out is not None:
        from alignkit.runs.run import Run
        from alignkit_apps.check.reuse import planned as reuse

        lines += reuse(Run(recipe, out))
    text = "\n".join([*lines, f"ok: {recipe.name}: stages {' -> '.join(recipe.stages)}"])
    stages = {name: stage.component.name for name, stage in recipe.stages.items()}
    return Result("check", {"recipe": recipe.name, "stages": stages, "notes": lines}, lambda: print_lines(text))


def _plan(load: Callable[..., Recipe], out: Path | None, gpus: str | None, *, probe: bool) -> Result:
    from alignkit_apps.check.cards import machine_of

    machine = machine_of(gpus) if gpus is not None else None
    recipe = load()
    from alignkit_apps.check.plan import as_json, plan_recipe  # imports torch

    folder = out or Path("runs") / recipe.name
    plans = plan_recipe(recipe, folder, lambda more: load(more, lambda text: None), machine, probe=probe, say=_say)
    return Result("plan", as_json(recipe, plans), lambda: _show_plan(recipe, plans))


def _show_plan(recipe: Recipe, plans: Sequence[StagePlan]) -> None:
    from alignkit_apps.check.tables import memory_table, remarks, work_table

    print(printable(f"{recipe.name} on {plans[0].machine.title}"))
    for table in (work_table(plans), memory_table(plans)):
        print()
        print_table(*table)
    print()
    for line in remarks(plans):
        print_lines(line)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
