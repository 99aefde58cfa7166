"""All results in a run's folder: current ones, earlier ones, interrupted, waiting and damaged
ones.
"""

from __future__ import annotations

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


def results_table(run: Path, reference: str = "") -> Table:
    """All results of a run, or the one that `align@ppo` names. Raises RecipeError if there is
    none.
    """
    if reference:
        find_result(run, reference)
    current = sorted(path.parent for path in run.glob("[!.]*/stage.json"))
    rows = [_row(run, folder, "current") for folder in current]
    rows += [_row(run, folder, "earlier") for folder in _others(run)]
    rows = [row for row in rows if reference in ("", row[0])]
    return Table("results", ["result", "state", "finished", "MB", "folder"], rows, keys=3)


def earlier_results(run: Path) -> list[str]:
    """The names of results that no stage is linked to, and of unfinished work."""
    found = list[str]()
    for name, state, *_ in (_row(run, folder, "earlier") for folder in _others(run)):
        found.append(name if state == "earlier" else f"{name} ({state})")
    return found


def prune(run: Path) -> str:
    """Delete all results but the current ones; returns what to say."""
    with locked(run):
        others = _others(run)
        size = sum(map(_bytes, others))
        for folder in others:
            discard_folder(folder)
    return f"deleted {len(others)} results, {size / 1e6:.0f} MB"


def _others(run: Path) -> list[Path]:
    """The folders of results, and of unfinished work, that no stage is linked to."""
    current = {path.parent.resolve() for path in run.glob("[!.]*/stage.json")}
    every = [*sorted((run / RESULTS).glob("[!.]*")), *sorted((run / WORK).glob("[!.]*"))]
    return [folder for folder in every if folder.resolve() not in current]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _row(run: Path, folder: Path, state: str) -> list[str]:
    """finished: when stage.json was written."""
    record, file, finished = read_record(folder), folder / "stage.json", ""
    if record and not record.get("complete"):
        state = "running" if in_use(run) else "interrupted"
        if "waits_for" in record:
            state = "waiting"
    elif damage_of(folder):
        state = "damaged"
    else:
        finished = f"{datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}"
    stage = folder.name if folder.parent == run else stage_of(folder)
    names = {path.resolve(): name for name, path in results_of_stage(run, stage).items()}
    name, place = names.get(folder.resolve(), stage), folder.relative_to(run)
    return [name, state, finished, f"{_bytes(folder) / 1e6:.1f}", str(place)]
