"""The commands `alignkit check` and `alignkit verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.contract.commands import RecipeName, Result, argument, option
from alignkit.errors import AlignkitError, refuse
from alignkit.io.text import is_file
from alignkit_plugins.command_line.printing import print_lines, print_table
from alignkit_plugins.text.readable import duration

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe, Stage
    from alignkit.runs.run import Run

RESTORED = "an earlier result is restored"
REUSED = ("reused", RESTORED)  # how states begin of which nothing runs
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
    each: Annotated[
        list[str] | None, option("KEY=VALUES", "With --plan: of all cells, as in run.")
    ] = None,
) -> Result:
    """Check a recipe and its data without running it.

    The chat template of a model on this machine renders the first 200 rows of each source, and code
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
      alignkit check recipe.yaml --plan --each seed=3..7
      alignkit check recipe.yaml --gpu 24 model.base=Qwen3-8B
    """
    row = [word for word in words or () if "=" not in word and not word.startswith("~")]
    if len(row) > 2 or not all(number.isdigit() for number in row[1:]):
        help = "name one of each; an override is KEY=VALUE"
        refuse(f"not a stage and the number of a row: {' '.join(row)}", help)
    if row and plan:
        refuse("a plan is for all stages", "leave STAGE out, or --plan")
    if each and (row or gpu or full or not plan):
        refuse("--each is for a plan of this machine", "add --plan, and leave out the rest")
    from alignkit.recipe.load import load_named
    from alignkit.runs.services import folder_of

    if each:
        return _plan_cells(lambda more: load_named(recipe, [*(words or ()), *more]), each)
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


def cells(load: Any, command: Any, each: Sequence[str], *options: Any) -> Result | None:
    """What `alignkit run --each --dry-run` finds out."""
    out, jobs, part, dry_run = options
    return _plan_cells(load, each, out, jobs, part, check=True) if dry_run else None


def _plan_cells(
    load: Any,
    each: Sequence[str],
    out: Path | None = None,
    jobs: int = 1,
    part: str = "",
    check: bool = False,
) -> Result:
    """About how much memory and time cells take. What several share counts once, and nothing that is
    there. check: whether the data of each are checked, too.
    """
    from alignkit.io.results import CELLS
    from alignkit.runs.run import Run
    from alignkit.runs.services import folder_of
    from alignkit.runs.stage import FIRST_ROWS
    from alignkit_plugins.cells.running import chosen_cells
    from alignkit_plugins.recipe_tools import plan  # imports torch

    chosen, recipes = chosen_cells(load, each, part)
    plain = load([])
    folder = folder_of(plain, out) / CELLS
    plans, notes, left, made = list[plan.StagePlan](), dict[str, None](), 0, set[str]()
    for cell in chosen:
        recipe = recipes[cell.address]
        try:
            run = Run(recipe, folder / cell.address)
            run.say = lambda text: None
            if check:
                run.prepare(run.stages, rows=FIRST_ROWS)
            without = [name for name in recipe.stages if name not in run.stages]
            for name, state in dict(_states(run, keyed=True)).items():
                key = f"{name} {run.hashes[name]}"
                without += [name] if key in made or state.startswith(REUSED) else []
                made.add(key)
            if len(without) < len(recipe.stages):
                found, own = plan.plan_recipe(recipe, folder / cell.address, without)
                plans, notes, left = [*plans, *found], notes | dict.fromkeys(own), left + 1
        except AlignkitError as error:
            error.add_note(f"in cell {cell.address}")
            raise
    seconds = sum(one.seconds or 0 for one in plans) + left * plan.OF_PROCESS
    peak = max((one.peak for one in plans), default=0) * min(jobs, max(1, left))
    total = f"{left} of {len(chosen)} cells: about {duration(float(f'{seconds / jobs:.2g}'))}"
    at_once = f"{jobs} at once" if jobs > 1 else "one at a time"
    lines = [f"{total}, {at_once}, about {peak / 1e9:.1f} GB", *notes]
    facts = {"recipe": plain.name, "stages": list(map(asdict, plans)), "seconds": seconds}

    def show() -> None:
        if plans:
            print_table(*plan.table(plan.summed(plans)))
        print_lines("\n".join(lines))

    return Result("plan", {**facts, "cells": [cell.values for cell in chosen]}, show)


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
    yield from (f"{name}: {state}" for name, state in _states(run))


def _states(run: Run, keyed: bool = False) -> Iterator[tuple[str, str]]:
    """keyed: whether all keys are needed."""
    from alignkit.io.digest import digest
    from alignkit.io.results import RESULTS, WORK

    # Without any result, no key and no base model is needed.
    folders = [run.folder, *run.others]
    known = keyed or any((one / RESULTS).exists() or (one / WORK).exists() for one in folders)
    for stage in run.stages.values():
        parts = stage.with_files(stage.key()) if known else {}
        run.hashes[stage.name] = digest(parts)
        yield stage.name, _planned(run, stage.spec, parts)


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
        return RESTORED
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
        why = "is converted by its first run" if is_file(base) else "is not on this machine"
        yield f"{base} {why}, so its chat template was not tried"
    else:
        yield f"{base}: looked at {scope} as its chat template writes them"


def _plan(recipe: Recipe, folder: Path, gpu: float | None) -> Result:
    from alignkit.runs.run import Run
    from alignkit_plugins.recipe_tools import gpu_plan, plan  # import torch

    if gpu is None:
        states = dict(_states(Run(recipe, folder))) if folder.is_dir() else {}
        here = {name: state for name, state in states.items() if state.startswith(REUSED)}
        plans, notes = plan.plan_recipe(recipe, folder, here)
        notes = [f"{name}: {state}" for name, state in here.items()] + notes
        cells = plan.table(plans)
    else:
        plans, notes = gpu_plan.plan_card(recipe, gpu)
        cells = gpu_plan.card_table(plans)
    notes = [f"{one.name}: {one.work.note}" for one in plans if one.work.note] + notes

    def show() -> None:
        print_table(*cells)
        print_lines("\n".join(notes))

    facts = {"recipe": recipe.name, "stages": list(map(asdict, plans))}
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
