"""The command `alignkit check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import RecipeName, Result, load, refuse
from alignkit_plugins.printing import console, print_lines, print_table

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STAGE [N]] KEY=VALUE",
        help=(
            "STAGE and N name a stage and the row of it to show, the first by default. Overrides "
            "are as in run."
        ),
    ),
]


def check(
    recipe: RecipeName,
    words: Words = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Let the chat template render all rows, not only the first 200 of each source.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show about how much memory and time each stage will take."),
    ] = False,
) -> Result:
    """Check a recipe and its data without running it.

    The chat template of a model that is here renders the first 200 rows of each source, and code
    that the recipe names, such as your rewards, is imported. It also shows how the data are
    understood, and what a run would reuse of `runs/NAME`. With a STAGE, it shows a row as that
    stage sees it: as data, as the chat template renders it, and as tokens, with those that are
    learned. With --plan, a stage that is too large for this machine is an error. No weights are
    read.

    \b
    Examples:
      alignkit check recipe.yaml
      alignkit check recipe.yaml model.base=tiny
      alignkit check quickstart sft 7
      alignkit check recipe.yaml --plan
    """
    row = [word for word in words or () if "=" not in word and not word.startswith("~")]
    if len(row) > 2 or not all(number.isdigit() for number in row[1:]):
        refuse(
            f"not a stage and the number of a row: {' '.join(row)}",
            "name one of each; an override is KEY=VALUE",
        )
    if row and plan:
        refuse("a plan is for all stages", "leave STAGE out, or --plan")
    from alignkit.runs.services import folder_of

    loaded = load(recipe, [word for word in words or () if word not in row])
    folder = folder_of(loaded, None)
    if row:
        from alignkit_plugins.recipes.check_row import inspect, show  # imports torch

        found = inspect(loaded, row[0], int([*row, "1"][1]), folder)
        return Result("row", asdict(found), lambda: show(found, console()))
    return _plan(loaded, folder) if plan else checked(loaded, None, full)


def checked(recipe: Recipe, out: Path | None = None, full: bool = False) -> Result:
    """What `alignkit check`, and `alignkit run --dry-run`, find out about a recipe. out: folder of
    the run.
    """
    from alignkit.runs.services import folder_of

    folder = folder_of(recipe, out)
    lines = _data_lines(recipe, folder, full)
    if folder.is_dir():
        from alignkit.runs.run import Run
        from alignkit_plugins.recipes.reuse import planned

        lines += planned(Run(recipe, folder))
    stages = {name: recipe.stages[name].component.name for name in recipe.chosen or recipe.stages}
    text = "\n".join([*lines, f"ok: {recipe.name}: stages {' -> '.join(stages)}"])
    return Result(
        "check",
        {"recipe": recipe.name, "stages": stages, "notes": lines},
        lambda: print_lines(text),
    )


def _data_lines(recipe: Recipe, folder: Path, full: bool) -> list[str]:
    """How the data files are read. Raises the errors with which a run would stop before a stage."""
    from alignkit.recipe.schema import BASE, specs
    from alignkit.registry import Component
    from alignkit.runs.run import Run
    from alignkit.runs.stage import FIRST_ROWS, TrainingStage
    from alignkit_plugins.report.data_lines import source_lines

    # Ordered sets
    run, shown, notes = Run(recipe, folder, download=False), dict[str, None](), dict[str, None]()
    run.say = lambda text: notes.setdefault(text)
    run.prepare(run.stages, rows=None if full else FIRST_ROWS)
    for stage in run.stages.values():
        for header, *sample in map(source_lines, stage.facts):
            rows = "\n".join(sample)
            known = any(text.endswith(rows) for text in shown)
            shown[header if known else f"{header}\n{rows}".strip()] = None
    looked_at = "all rows" if full else f"the first {FIRST_ROWS} rows of each source"
    looks = {
        True: f"looked at {looked_at} as its chat template writes them",
        False: (
            "not looked at: rows as its chat template writes them, because check makes and "
            "downloads no model"
        ),
    }
    for stage in run.stages.values():
        if isinstance(stage, TrainingStage) and stage.facts:
            is_here = run.base(BASE).encoder is not None
            notes[f"{recipe.model.base}: {looks[is_here]}"] = None
        for part in specs(
            [stage.stage.settings, stage.stage.component.options, stage.stage.engine], Component
        ):
            if getattr(part.registration.implementation, "runs_code", False):
                notes[f"{stage.name}: imported the code of {part.kind} '{part.name}'"] = None
        for spec in stage.entries:
            hub = [source.name for source in spec.sources if source.hub]
            notes |= dict.fromkeys(f"not read yet: {name}, which the run downloads" for name in hub)
    return [*shown, *notes]


def _plan(recipe: Recipe, folder: Path) -> Result:
    from alignkit_plugins.recipes.plan import plan_recipe, table, too_large  # imports torch

    plans = plan_recipe(recipe, folder)

    def show() -> None:
        print_table(*table(plans))
        for plan in plans:
            if plan.work.note:
                print_lines(f"{plan.name}: {plan.work.note}")
        print_lines(
            "about: by formulas, and a short probe of this machine; responses may end before "
            "they are full"
        )

    facts = {"recipe": recipe.name, "stages": [asdict(plan) for plan in plans]}
    return Result("plan", facts, show, error=too_large(recipe, plans))
