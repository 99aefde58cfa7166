"""All results in a run's folder: current ones, earlier ones, interrupted, waiting and damaged
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from alignkit.io.atomic import discard_folder
from alignkit.io.results import (
    RESULTS,
    WORK,
    damage_of,
    find_result,
    read_record,
    results_of_stage,
    stage_of,
)
from alignkit.report import Table
from alignkit.runs.services import locked
from alignkit_plugins.report.history import in_use
from alignkit_plugins.report.stages import size_of


def results_table(run: Path, reference: str = "") -> Table:
    """All results of a run, or the one that `align@ppo` names. Raises RecipeError if there is
    none.
    """
    if reference:
        find_result(run, reference)
    folders = dict.fromkeys(sorted(path.parent for path in run.glob("[!.]*/stage.json")), "current")
    folders |= dict.fromkeys(_others(run), "earlier")
    names = dict[Path, str]()
    for stage in {stage_of(folder.resolve()) for folder in folders}:
        names |= {folder.resolve(): name for name, folder in results_of_stage(run, stage).items()}
    rows = [
        _row(run, folder, state, names.get(folder.resolve())) for folder, state in folders.items()
    ]
    rows = [row for row in rows if reference in ("", row[0])]
    return Table("results", ["result", "state", "finished", "MB", "folder"], rows, keys=3)


def earlier_results(run: Path) -> list[str]:
    """The names of results that no stage is linked to, and of unfinished work."""
    rows = [row for row in results_table(run).rows if row[4].startswith((RESULTS, WORK))]
    return [
        row[0] if row[1] == "earlier" else f"{row[0]} ({row[1].removeprefix('earlier, ')})"
        for row in rows
    ]


def prune(run: Path) -> str:
    """Delete all results but the current ones; returns what to say."""
    with locked(run):
        others = list(_others(run))
        size = sum(map(size_of, others))
        for folder in others:
            discard_folder(folder)
    return f"deleted {len(others)} results, {size / 1e6:.0f} MB"


def _others(run: Path) -> Iterator[Path]:
    """The folders of results, and of unfinished work, that no stage is linked to."""
    current = {path.parent.resolve() for path in run.glob("[!.]*/stage.json")}
    for kind in (RESULTS, WORK):
        yield from (
            folder
            for folder in sorted((run / kind).glob("[!.]*"))
            if folder.resolve() not in current
        )


def _row(run: Path, folder: Path, state: str, name: str | None) -> list[str]:
    """name: None for a step's result, and for what is not complete. finished: when stage.json was
    written.
    """
    record, file = read_record(folder), folder / "stage.json"
    finished = (
        datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        if file.exists()
        else ""
    )
    if record.get("complete") or not record:
        state = "damaged" if damage_of(folder) else state
    else:
        works = state == "current" and in_use(run)
        ended = "waiting" if "waits_for" in record else "running" if works else "interrupted"
        state, finished = (ended if state == "current" else f"{state}, {ended}"), ""
    stage = folder.name if folder.parent == run else stage_of(folder)
    return [
        name or stage,
        state,
        finished,
        f"{size_of(folder) / 1e6:.1f}",
        str(folder.relative_to(run)),
    ]
