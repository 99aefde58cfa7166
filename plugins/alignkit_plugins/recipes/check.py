"""The command `alignkit check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import RecipeName, Result, load, refuse
from alignkit_plugins.printing import print_lines, print_table

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe
    from alignkit.runs.run import Run

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
            help=("Let the chat template render all rows, not only the first 200 of each source."),
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
        help = "name one of each; an override is KEY=VALUE"
        refuse(f"not a stage and the number of a row: {' '.join(row)}", help)
    if row and plan:
        refuse("a plan is for all stages", "leave STAGE out, or --plan")
    from alignkit.runs.services import folder_of

    loaded = load(recipe, [word for word in words or () if word not in row])
    folder = folder_of(loaded, None)
    if row:
        from alignkit_plugins.recipes.check_row import inspect  # imports torch

        found = inspect(loaded, row[0], int([*row, "1"][1]), folder)
        return Result("row", asdict(found), lambda: print_lines(found.text()))
    return _plan(loaded, folder) if plan else checked(loaded, None, full)


def checked(recipe: Recipe, out: Path | None = None, full: bool = False) -> Result:
    """What `alignkit check`, and `alignkit run --dry-run`, find out about a recipe. out: folder of
    the run. Raises the errors with which a run would stop before a stage.
    """
    from alignkit.runs.run import Run
    from alignkit.runs.services import folder_of
    from alignkit.runs.stage import FIRST_ROWS
    from alignkit_plugins.recipes.reuse import planned

    folder = folder_of(recipe, out)
    run, said = Run(recipe, folder, download=False), dict[str, None]()  # an ordered set
    run.say = lambda text: said.setdefault(text)
    run.prepare(run.stages, rows=None if full else FIRST_ROWS)
    lines = [*_data_lines(run), *said, *_notes(run, full)]
    lines += planned(Run(recipe, folder)) if folder.is_dir() else ()
    stages = {name: recipe.stages[name].component.name for name in recipe.chosen or recipe.stages}
    text = "\n".join([*lines, f"ok: {recipe.name}: stages {' -> '.join(stages)}"])
    facts = {"recipe": recipe.name, "stages": stages, "notes": lines}
    return Result("check", facts, lambda: print_lines(text))


def _data_lines(run: Run) -> list[str]:
    """How each entry is read, with a row of each source, once."""
    from alignkit_plugins.report.data_card import describe

    texts = dict[str, None]()
    for stage in run.stages.values():
        for spec in stage.read:
            texts["\n".join(describe(run.data.read(spec)))] = None
    return list(texts)


def _notes(run: Run, full: bool) -> dict[str, None]:
    """What was looked at and imported, and what was not."""
    from alignkit.recipe.schema import BASE, specs
    from alignkit.registry import Component
    from alignkit.runs.stage import FIRST_ROWS, TrainingStage

    notes = dict[str, None]()
    looked_at = "all rows" if full else f"the first {FIRST_ROWS} rows of each source"
    text = f"looked at {looked_at} as its chat template writes them"
    if run.base(BASE).encoder is None:
        why = "because check makes and downloads no model"
        text = f"not looked at: rows as its chat template writes them, {why}"
    for stage in run.stages.values():
        if isinstance(stage, TrainingStage) and stage.read:
            notes[f"{run.recipe.model.base}: {text}"] = None
        options = [stage.stage.settings, stage.stage.component.options, stage.stage.engine]
        for part in specs(options, Component):
            if getattr(part.registration.implementation, "runs_code", False):
                notes[f"{stage.name}: imported the code of {part.kind} '{part.name}'"] = None
        for spec in stage.entries:
            for source in spec.sources:
                if source.hub:
                    notes[f"not read yet: {source.name}, which the run downloads"] = None
    return notes


def _plan(recipe: Recipe, folder: Path) -> Result:
    from alignkit_plugins.recipes.plan import plan_recipe, table, too_large  # imports torch

    plans = plan_recipe(recipe, folder)

    def show() -> None:
        print_table(*table(plans))
        for plan in plans:
            if plan.work.note:
                print_lines(f"{plan.name}: {plan.work.note}")
        about = "about: by formulas, and a short probe of this machine"
        print_lines(f"{about}; responses may end before they are full")

    facts = {"recipe": recipe.name, "stages": [asdict(plan) for plan in plans]}
    return Result("plan", facts, show, error=too_large(recipe, plans))
