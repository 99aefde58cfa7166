"""What `alignkit show` prints: what a run found and its results, or runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.report import Block, Report
from alignkit_apps.report.compare import compared
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.results import is_result, results_table
from alignkit_apps.report.side_by_side import blocks as side_by_side
from alignkit_apps.report.tables import evaluation_tables
from alignkit_apps.report.write import write_report


def shown(folders: Sequence[Path]) -> Report:
    """A run whose report is written again, one of its results, or a comparison of several runs.

    Raises RecipeError for a folder that is not a run's.
    """
    if len(folders) > 1:
        return compared(folders)
    folder = folders[0]
    if is_result(folder):
        return Report([results_table(folder.parent, folder.name)])
    facts = facts_of(folder)
    page = write_report(folder, facts)
    run = facts["run"]
    blocks: list[Block] = [f"{run['name']}: {run['outcome']}, {run['stages_done']} of {run['stages']} stages"]
    if sentences := list(dict.fromkeys(verdict["sentence"] for verdict in facts["verdicts"])):
        blocks.append("\n".join(sentences))
    for item in facts["evaluations"]:
        pairs = [pair for pair in facts["swaps"] if pair["stage"] == item["stage"]]
        blocks += [*evaluation_tables(facts, item["stage"]), *side_by_side(pairs, folder)]
    return Report([*blocks, results_table(folder), f"report: {page}"])
