"""The command `alignkit show`: what a run has so far, one of its results, or runs side by side."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.commands import Result, refuse
from alignkit.io.atomic import write_text
from alignkit.io.results import PAGE, RECIPE, is_result_name
from alignkit.io.text import is_file
from alignkit.report import Block, Report, Table
from alignkit_plugins.compare.readable import duration, short
from alignkit_plugins.compare.rows import Row, main_rows, rows_of
from alignkit_plugins.compare.tables import table
from alignkit_plugins.models.find import RUNS, find_run, runs_in
from alignkit_plugins.printing import reported
from alignkit_plugins.report.changes import dotted, flat
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import Facts, each, facts_of, load_yaml
from alignkit_plugins.report.history import starts_of
from alignkit_plugins.report.results import earlier_results, prune, results_table
from alignkit_plugins.report.screen import screen, stage_lines

LONGEST = 24  # characters of a value


def shown(folders: Sequence[Path], pruned: bool, opened: bool) -> Result:
    """A run, one of its results, several runs, or the runs in a folder; of none, those in `runs`.

    pruned: delete all results of a run but the current ones. opened: open its report in a browser.
    Raises RecipeError for a folder that is not a run's and has none.
    """
    folder, runs = [*folders, RUNS][0], list[Path]()
    if len(folders) < 2 and not is_file(folder / RECIPE):
        runs = runs_in(folder)
    if (pruned or opened) and (len(folders) != 1 or runs):
        refuse(f"--{'prune' if pruned else 'open'} is for one run", "name one RUN")
    if runs:
        note = "alignkit show RUN shows one, and RUN RUN compares two"
        return reported(Report([_listed(runs), note]))
    if not folders:
        help = "for example: alignkit run smoke; alignkit show runs/smoke"
        refuse("there are no runs in runs/", help)
    if len(folders) > 1:
        for one in folders:
            if is_result_name(one.name):
                help = "to compare their answers: alignkit evaluate RUN/A RUN/B --prompts FILE"
                refuse(f"{one} is one result, and only runs can be compared", help)
        return reported(compared(folders))
    if is_result_name(folder.name):
        return reported(Report([results_table(*find_run(folder))]))
    facts = facts_of(folder)
    blocks = _of_run(facts, folder)
    if opened:
        file = Path(tempfile.mkdtemp(prefix="alignkit-")) / PAGE
        write_text(file, page(facts))
        webbrowser.open(file.as_uri())
        blocks.append(f"report: {file}")
    if pruned:
        blocks.append(prune(folder))
    return reported(Report(blocks), "run_report", facts)


def _listed(runs: Sequence[Path]) -> Table:
    """Runs, with what became of their last starts."""
    rows = list[list[str]]()
    for run in runs:
        last = (starts_of(run) or [{}])[-1]
        rows.append([str(run), last.get("outcome", "-"), last.get("started", "-")])
    return Table("", ["run", "last start", "at"], rows, keys=3)


def _of_run(facts: Facts, folder: Path) -> list[Block]:
    run, lines = facts["run"], list[str]()
    lines.append(f"{run['name']}: {run['outcome']}, {run['stages_done']} of {run['stages']} stages")
    if run["outcome"] == "failed":
        lines.append(" ".join(run["message"].split()).removeprefix("error: "))
    blocks: list[Block] = ["\n".join([*lines, *stage_lines(facts)])]
    if text := screen(facts, stages=False):
        blocks.append(text)
    last = list[str]()
    if earlier := earlier_results(folder):
        last.append(f"earlier results: {', '.join(earlier)}")
    if (folder / PAGE).is_file():
        last.append(f"report: {folder / PAGE}")
    if last:
        blocks.append("\n".join(last))
    return blocks


# Several runs


def compared(folders: Sequence[Path]) -> Report:
    """How the results, evaluations, recipes and versions of runs differ."""
    facts = {"/".join(folder.parts[-2:]): facts_of(folder) for folder in folders}
    recipes = [{**load_yaml(one["recipe"]), "name": ""} for one in facts.values()]
    around = list[Mapping[str, Any]]()
    for one in facts.values():
        around.append({**one["reproduce"]["versions"], **one["reproduce"]["machine"], "memory": ""})
    blocks: list[Block] = [_overview(facts), *_evaluations(facts)]
    for what, values in (("recipes", recipes), ("versions and machines", around)):
        rows = _differing(values)
        title = f"what differs in the {what}"
        blocks.append(Table(title, ["key", *facts], rows) if rows else f"the {what} are equal")
    return Report(blocks)


def _overview(facts: Mapping[str, Facts]) -> Table:
    """How each run ended, and what its stages learned."""
    runs = [one["run"] for one in facts.values()]
    rows = {"result": [f"{one['outcome']}, {one['stages_done']} stages" for one in runs]}
    rows["time"] = [duration(one["seconds"]) for one in runs]
    for at, one in enumerate(facts.values()):
        for stage in one["stages"]:
            cells = rows.setdefault(stage["name"], ["-"] * len(runs))
            cells[at] = stage["learned"] or "-"
    cells_of = [[name, *cells] for name, cells in rows.items() if {*cells} != {"-"}]
    return Table("", ["", *facts], cells_of)


def _evaluations(facts: Mapping[str, Facts]) -> list[Table]:
    """The numbers of all policies by stage, a column per run."""
    found: dict[str, list[Row]] = {}
    for run, one in facts.items():
        for item in one["evaluations"]:
            for row in main_rows(rows_of(item["evaluation"])):
                named = replace(row, policy=run, metric=f"{row.policy}: {row.metric}")
                found.setdefault(item["stage"], []).append(named)
    note = "mean and 95% interval (means may also differ because the prompts do)"
    return [table(rows, f"{stage}: {note}") for stage, rows in found.items()]


def _differing(values: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per key whose values are not all equal."""
    every = [flat(one) for one in values]
    rows = list[list[str]]()
    for path in dict.fromkeys(each(every)):
        cells = [short(one.get(path)) for one in every]
        if len(set(cells)) > 1:
            brief = [cell if len(cell) <= LONGEST else f"...{cell[-LONGEST:]}" for cell in cells]
            rows.append([dotted(path), *brief])
    return rows
