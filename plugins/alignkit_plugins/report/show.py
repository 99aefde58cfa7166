"""The command `alignkit show`: what a run has so far, one of its results, or the runs in a
folder.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.contract.commands import Result, argument
from alignkit.contract.report import Block, Report, Table
from alignkit.errors import refuse
from alignkit.io.atomic import discard_folder, write_text
from alignkit.io.results import CELLS, PAGE, RECIPE, RESULTS, WORK, damage_of, read_record, stage_of
from alignkit.io.text import is_file
from alignkit_plugins.command_line.printing import reported


def show(
    folders: Annotated[
        list[Path] | None,
        argument(
            "RUN...",
            "Folder of a run, or one of its results: RUN/align@ppo. Several: their cells as one "
            "table. Default: list runs/.",
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Delete all results of a run but the current ones, and of its cells."
        ),
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report of a run in a browser.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the numbers of cells, by seed, as CSV.")
    ] = False,
) -> Result:
    """Show what a run found so far.

    That is a line per stage, and the screen that it prints at its end. Nothing is written, but for
    RUN/report.html of a run with cells.

    align@ppo is the newest result of the stage align by ppo; align@ppo~1 is the one before.
    evaluate, chat, serve and export take RUN/align@ppo. Earlier results are restored when the
    recipe is changed back.

    \b
    Examples:
      alignkit show runs/quickstart
      alignkit show runs/quickstart --open
      alignkit show runs/quickstart --prune
    """
    from alignkit_plugins.command_line.find import RUNS, find_run, is_result_name, runs_in

    folder = folders[0] if folders else None
    options = {"--prune": prune, "--open": open_page, "--csv": as_csv}
    given = [name for name, asked in options.items() if asked]
    if as_csv and len(given) > 1:
        refuse(f"--csv prints numbers and nothing else, not {given[0]}", "leave one of them out")
    if folders and (len(folders) > 1 or _has_cells(folders[0])):
        if len(folders) > 1 and not as_csv:
            _check_none(given)
        return shown(folders, as_csv=as_csv, prune=prune, open_page=open_page)
    if as_csv:
        help = "`alignkit --json show RUN` has the numbers of a run"
        refuse(f"--csv is for cells, of which there are none in {folder or RUNS}", help)
    runs = [] if folder and is_file(folder / RECIPE) else runs_in(folder or RUNS)
    if runs:
        _check_none(given)
        return reported(Report([_listed(runs), "alignkit show RUN shows one"]))
    if folder is None:
        refuse("there are no runs in runs/", "for example: alignkit run smoke")
    run, name = find_run(folder)
    if is_result_name(name):
        _check_none(given)
        return reported(Report([results_table(run, name)]))
    from alignkit_plugins.report.facts import facts_of

    facts = facts_of(folder)
    blocks = _of_run(facts, folder)
    if open_page:
        blocks.append(_opened(facts))
    if prune:
        blocks.append(pruned([run]))
    return reported(Report(blocks), "run_report", facts)


def _check_none(given: Sequence[str]) -> None:
    """Refuse options of one run where none is shown."""
    if given:
        refuse(f"{given[0]} is for one run", f"name it: alignkit show RUN {given[0]}")


def _has_cells(folder: Path) -> bool:
    """Whether a folder is of cells, perhaps none of which is complete."""
    own = is_file(folder / RECIPE) and not any((folder / CELLS).glob("*=*.json"))
    return (folder / CELLS).is_dir() and not own


def cells(*options: Any) -> Result | None:
    """The command `alignkit run --each`, unless it is dry."""
    from alignkit_plugins.cells.running import run_cells

    *given, dry_run = options
    return None if dry_run else shown([run_cells(*given)])


def shown(
    runs: Sequence[Path], *, as_csv: bool = False, prune: bool = False, open_page: bool = False
) -> Result:
    """What the cells of runs say. Those of one run are in its report.html, too. Raises DataError."""
    deleted = [_pruned_cells(run) for run in runs if prune]
    from alignkit_plugins.report.cells import lines_of, so_far
    from alignkit_plugins.report.events import report_run, write_report

    report, facts = found = so_far(runs)
    if as_csv:
        if facts["progress"]["left"]:
            print(report.blocks[-1], file=sys.stderr)
        written = csv.writer(sys.stdout, lineterminator="\n")
        return Result("cells", facts, lambda: written.writerows(lines_of(facts)))
    blocks = list(report.blocks)
    if len(runs) == 1 and facts["cells"]:
        report_run(runs[0], blocks.append, found)
    if open_page and not facts["cells"]:
        blocks.append("there is no report to open, as no cell is complete yet")
    elif open_page:
        _browse(write_report(runs[0], found))
    return reported(Report([*blocks, *deleted]), "cells", {"folder": runs[0], **facts})


def _listed(runs: Sequence[Path]) -> Table:
    """Runs, with what became of their last starts."""
    from alignkit_plugins.report.history import starts_of

    rows = list[list[str]]()
    for run in runs:
        without = "cells" if _has_cells(run) else "-"
        last = [{"outcome": without, "started": "-"}, *starts_of(run)][-1]
        rows.append([str(run), last["outcome"], last["started"]])
    return Table("", ["run", "last start", "at"], rows, keys=3)


def _of_run(facts: Mapping[str, Any], folder: Path) -> list[Block]:
    from alignkit_plugins.report.screen import screen, stage_lines

    run = facts["run"]
    lines = [f"{run['name']}: {run['outcome']}, {run['stages_done']} of {run['stages']} stages"]
    if run["outcome"] == "failed":
        lines.append(" ".join(run["message"].split()).removeprefix("error: "))
    blocks: list[Block] = ["\n".join([*lines, *stage_lines(facts)])]
    if text := screen(facts, stages=False):
        blocks.append(text)
    earlier = list[str]()
    for other in _others(folder):
        name, state, *_ = _row(folder, other, "earlier")
        earlier.append(name if state == "earlier" else f"{name} ({state})")
    if earlier:
        blocks.append(f"earlier results: {', '.join(earlier)}")
    if is_file(folder / PAGE):
        blocks.append(f"report: {folder / PAGE}")
    return blocks


def _opened(facts: Mapping[str, Any]) -> str:
    import tempfile

    from alignkit_plugins.report.document import page

    file = Path(tempfile.mkdtemp(prefix="alignkit-")) / PAGE
    write_text(file, page(facts))
    _browse(file)
    return f"report: {file}"


def _browse(file: Path) -> None:
    import webbrowser

    webbrowser.open(file.resolve().as_uri())


# Results


def results_table(run: Path, reference: str = "") -> Table:
    """All results of a run, or the one that `align@ppo` names. Raises RecipeError if there is
    none.
    """
    from alignkit_plugins.command_line.find import find_result

    if reference:
        find_result(run, reference)
    current = sorted(path.parent for path in run.glob("[!.]*/stage.json"))
    rows = list[list[str]]()
    for folder in [*current, *_others(run)]:
        row = _row(run, folder, "current" if folder in current else "earlier")
        if reference in ("", row[0]):
            rows.append(row)
    return Table("results", ["result", "state", "MB", "folder"], rows, keys=2)


def _row(run: Path, folder: Path, state: str) -> list[str]:
    from alignkit_plugins.command_line.find import results_of_stage

    stage = folder.name if folder.parent == run else stage_of(folder)
    result = stage
    for name, path in results_of_stage(run, stage).items():
        if path.resolve() == folder.resolve():
            result = name
    if not read_record(folder).get("complete"):
        state = "unfinished"
    elif damage_of(folder):
        state = "damaged"
    return [result, state, f"{_bytes(folder) / 1e6:.1f}", str(folder.relative_to(run))]


def _others(run: Path) -> list[Path]:
    """The folders of results, and of unfinished work, that no stage is linked to."""
    current = {path.parent.resolve() for path in run.glob("[!.]*/stage.json")}
    every = [*sorted((run / RESULTS).glob("[!.]*")), *sorted((run / WORK).glob("[!.]*"))]
    return [folder for folder in every if folder.resolve() not in current]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pruned(runs: Sequence[Path]) -> str:
    """Delete all results of runs but the current ones; returns what to say."""
    from alignkit.runs.services import locked

    count = size = 0
    for run in runs:
        with locked(run):
            for folder in _others(run):
                count, size = count + 1, size + _bytes(folder)
                discard_folder(folder)
    return f"deleted {count} results, {size / 1e6:.0f} MB"


def _pruned_cells(run: Path) -> str:
    """`pruned` of a run and its cells. Those that are not complete are forgotten, if others are: their
    command runs them again.
    """
    from alignkit_plugins.cells.rows import COMMANDS, rows_of, to_come

    every = [*run.glob(RECIPE), *run.glob(f"{CELLS}/*/{RECIPE}")]
    deleted = pruned([file.parent for file in every])
    left = to_come(run) if rows_of(run) else ()
    if left:
        (run / CELLS / COMMANDS).unlink()
    return f"{deleted}; forgot incomplete cells: {len(left)}" if left else deleted
