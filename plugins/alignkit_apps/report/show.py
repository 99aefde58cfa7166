"""What `alignkit show` prints: what a run found and its results, or runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.io.stage_results import is_result_name
from alignkit.report import Block, Report, Table
from alignkit.runs.results import results_of
from alignkit_apps.report.compare import compared
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.side_by_side import side_by_side
from alignkit_apps.report.write import write_report


def shown(folders: Sequence[Path]) -> Report:
    """A run whose report is written again, one of its results, or a comparison of several runs.

    Raises RecipeError for a folder that is not a run's.
    """
    if len(folders) > 1:
        return compared(folders)
    folder = folders[0]
    if is_result_name(folder.name) and not folder.is_dir():
        return Report([_results(folder, folder.parent)])
    facts = facts_of(folder)
    page = write_report(folder, facts)
    run = facts["run"]
    blocks: list[Block] = [f"{run['name']}: {run['outcome']}, {run['stages_done']} of {run['stages']} stages"]
    if sentences := list(dict.fromkeys(verdict["sentence"] for verdict in facts["verdicts"])):
        blocks.append("\n".join(sentences))
    for item in facts["evaluations"]:
        pairs = [pair for pair in facts["swaps"] if pair["stage"] == item["stage"]]
        blocks += side_by_side(item["stage"], item["evaluation"], pairs, folder)
    return Report([*blocks, _results(folder, folder), f"report: {page}"])


def _results(folder: Path, run: Path) -> Table:
    rows = [
        [one.name, one.state, one.finished, f"{one.size / 1e6:.1f}", str(one.folder.relative_to(run))]
        for one in results_of(folder)
    ]
    return Table("results", ["result", "state", "finished", "MB", "folder"], rows, keys=3)
