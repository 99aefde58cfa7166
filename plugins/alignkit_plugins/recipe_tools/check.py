"""The commands `alignkit check` and `alignkit verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.contract.commands import RecipeName, Result, argument, option
from alignkit.errors import refuse
from alignkit_plugins.command_line.printing import print_lines, print_table

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe, Stage
    from alignkit.runs.run import Run

Words = Annotated[
    list[str] | None,
    argument(
        "[STAGE [N]] KEY=VALUE",
        (
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
    gpu: Annotated[
        float | None,
        option("GIB", "Plan the memory of a GPU of this size, from the model's shapes.", min=1),
    ] = None,
) -> Result:
    """Check a recipe and its data without running it.

    The chat template of a model that is here renders the first 200 rows of each source, and code
    that the recipe names, such as your rewards, is imported and tried with a made-up answer. It
    also shows how the data are understood, and what a run would reuse of `runs/NAME`. With a STAGE,
    it shows a row as that stage sees it: as data, as the chat template renders it, and as tokens,
    with those that are learned. No weights are read.

    \b
    Examples:
      alignkit check recipe.yaml
      alignkit check recipe.yaml model.base=tiny
      alignkit check quickstart sft 7
      alignkit check recipe.yaml --plan
      alignkit check recipe.yaml --gpu 24 model.base=Qwen3-8B
    """
    row = [word for word in words or () if "=" not in word and not word.startswith("~")]
    if len(row) > 2 or not all(number.isdigit() for number in row[1:]):
        help = "name one of each; an override is KEY=VALUE"
        refuse(f"not a stage and the number of a row: {' '.join(row)}", help)
    if row and plan:
        refuse("a plan is for all stages", "leave STAGE out, or --plan")
    from alignkit.recipe.load import load_named
    from alignkit.runs.services import folder_of

    loaded = load_named(recipe, [word for word in words or () if word not in row])
    folder = folder_of(loaded, None)
    if row:
        from alignkit_plugins.recipe_tools.check_row import inspect  # imports torch

        found = inspect(loaded, row[0], int([*row, "1"][1]), folder)
        return Result("row", asdict(found), lambda: print_lines(found.text()))
    if plan or gpu:
        return _plan(loaded, folder, gpu)
    return checked(loaded, None, full)


def checked(recipe: Recipe, out: Path | None = None, full: bool = False) -> Result:
    """What `alignkit check`, and `alignkit run --dry-run`, find out about a recipe. out: folder of
    the run. Raises the errors with which a run would stop before a stage.
    """
    from alignkit.runs.run import Run
    from alignkit.runs.services import folder_of
    from alignkit.runs.stage import FIRST_ROWS

    folder = folder_of(recipe, out)
    run, printed = Run(recipe, folder, download=False), dict[str, None]()  # an ordered set
    run.say = lambda text: printed.setdefault(text)
    rows = None if full else FIRST_ROWS
    run.prepare(run.stages, rows=rows)
    lines = [*_data_lines(run), *printed, *_notes(run, rows)]
    if folder.is_dir():
        lines += planned(Run(recipe, folder))
    stages = {name: recipe.stages[name].component.name for name in recipe.chosen or recipe.stages}
    text = "\n".join([*lines, f"ok: {recipe.name}: stages {' -> '.join(stages)}"])
    facts = {"recipe": recipe.name, "stages": stages, "notes": lines}
    return Result("check", facts, lambda: print_lines(text))


def _data_lines(run: Run) -> list[str]:
    """How each entry is read, with a row of each source."""
    from alignkit_plugins.report.data_card import describe

    texts = dict[str, None]()  # an ordered set
    for stage in run.stages.values():
        for spec in stage.read:
            texts["\n".join(describe(run.data.read(spec)))] = None
    return list(texts)


def planned(run: Run) -> Iterator[str]:
    """What a run would do with each stage: `sft: reused`. Nothing is done."""
    from alignkit.io.digest import digest
    from alignkit.io.results import RESULTS, WORK

    # Without any result, no key and no base model is needed.
    folders = [run.folder, *run.others]
    known = any((one / RESULTS).exists() or (one / WORK).exists() for one in folders)
    for stage in run.stages.values():
        parts = stage.with_files(stage.key()) if known else {}
        run.hashes[stage.name] = digest(parts)
        yield f"{stage.name}: {_planned(run, stage.spec, parts)}"


def _planned(run: Run, stage: Stage, parts: Mapping[str, Any]) -> str:
    from alignkit.io.results import WORK, damage_of, find, read_record
    from alignkit_plugins.cells.changes import change_since

    name, key = stage.name, run.hashes[stage.name]
    record = run.store.record(name)
    if found := find(run.folder, name, key, run.others):
        if found.parent.parent != run.folder:
            return f"reused from {found.parent.parent}"
        if record.get("hash") == key:
            return "reused"
        return "an earlier result is restored"
    if run.recipe.chosen and name not in run.recipe.chosen:
        return f"needed, but not complete: --until {name} runs it"
    if record.get("hash") == key and record.get("complete"):
        return f"runs again, because {damage_of(run.folder / name)}"
    if read_record(run.store.of(WORK, name, key)):
        return "continues"
    if record:
        return f"starts over{change_since(record, parts, stage)}"
    return "runs"


def _notes(run: Run, rows: int | None) -> Iterator[str]:
    """What was looked at, and what was not. rows: of each source; None: all."""
    from alignkit.recipe.schema import BASE, specs
    from alignkit.recipe.sources import DataSpec

    for stage in run.recipe.stages.values():
        for spec in specs([stage.settings, stage.component.options], DataSpec):
            for source in spec.sources:
                if source.hub is not None:
                    yield f"{source.name}: not read, because a run downloads it"
    base = run.recipe.model.base
    scope = "all rows" if rows is None else f"the first {rows} rows of each source"
    if run.model_source(BASE).encoder is None:
        yield f"{base} is not on this machine, so its chat template was not tried"
    else:
        yield f"{base}: looked at {scope} as its chat template writes them"


def _plan(recipe: Recipe, folder: Path, gpu: float | None) -> Result:
    from alignkit.runs.run import Run
    from alignkit_plugins.recipe_tools import gpu_plan, plan  # import torch

    if gpu is None:
        states = planned(Run(recipe, folder)) if folder.is_dir() else ()
        here = [line for line in states if ": reused" in line or line.endswith("restored")]
        plans, notes = plan.plan_recipe(recipe, folder, [line.split(":")[0] for line in here])
        notes = here + notes
        cells = plan.table(plans)
    else:
        plans, notes = gpu_plan.plan_card(recipe, gpu)
        cells = gpu_plan.card_table(plans)
    notes = [f"{one.name}: {one.work.note}" for one in plans if one.work.note] + notes

    def show() -> None:
        print_table(*cells)
        print_lines("\n".join(notes))

    facts = {"recipe": recipe.name, "stages": [asdict(one) for one in plans]}
    return Result("plan", facts, show)


def verify(
    stage: Annotated[
        Path,
        argument("RUN[/STAGE]", "Folder of a run, or of one of its stages, to run again."),
    ],
) -> Result:
    """Run stages again and say whether the bytes are the same.

    The inputs are the recorded ones. The run is only read. Judges on a server are not asked: their
    stored replies count. Exit code 7: something differs.

    \b
    Examples:
      alignkit verify runs/quickstart
      alignkit verify runs/quickstart/align
    """
    from alignkit.io.results import RECIPE
    from alignkit.recipe.load import load_named, stage_of
    from alignkit_plugins.command_line.find import find_run

    run, name = find_run(stage)
    recipe = load_named(str(run / RECIPE), None)
    names = list(recipe.stages)
    if name:
        names = [stage_of(recipe, name).name]
    from alignkit_plugins.recipe_tools.rerun import verified  # imports torch

    return verified(recipe, run, names)
