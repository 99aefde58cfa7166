"""All results in a run's folder: current ones, earlier ones, interrupted, waiting and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from alignkit.io.stage_results import EARLIER, find_result, read_record, results_of_stage
from alignkit.report import Table
from alignkit.runs.stage_store import DAMAGED
from alignkit_apps.report.history import in_use


def results_table(run: Path, reference: str = "") -> Table:
    """All results of a run, or the one that `align@ppo` names. Raises RecipeError if there is none."""
    if reference:
        one = find_result(run, reference)
        rows = [_row(run, one.folder, "current" if one.current else "earlier", one.name)]
    else:
        names = {one.folder: one.name for stage in _stages(run) for one in results_of_stage(run, stage)}
        current = [(path.parent, "current") for path in sorted(run.glob("*/stage.json"))]
        rows = [_row(run, folder, state, names.get(folder)) for folder, state in [*current, *_others(run)]]
    return Table("results", ["result", "state", "finished", "MB", "folder"], rows, keys=3)


def prune(run: Path) -> str:
    """Delete all results but the current ones; returns what to say."""
    from alignkit.runs.process import locked  # imports torch

    with locked(run):
        size = sum(_size(folder) for folder, _ in _others(run))
        count = len(list(_others(run)))
        shutil.rmtree(run / EARLIER, ignore_errors=True)
    return f"deleted {count} results, {size / 1e6:.0f} MB"


def _stages(run: Path) -> set[str]:
    return {path.parent.name for path in run.glob("*/stage.json")} | {folder.parent.name for folder, _ in _others(run)}


def _others(run: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted((run / EARLIER).glob("*/[!.]*")):
        yield path, "damaged" if path.name == DAMAGED else "earlier"


def _row(run: Path, folder: Path, state: str, name: str | None) -> list[str]:
    """name: None for a step's result, and for what is not complete. finished: when stage.json was written."""
    record, file = read_record(folder), folder / "stage.json"
    finished = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M") if file.exists() else ""
    if state != "damaged" and not record.get("complete"):
        works = state == "current" and in_use(run)
        ended = "waiting" if "waits_for" in record else "running" if works else "interrupted"
        state, finished = (ended if state == "current" else f"{state}, {ended}"), ""
    stage = folder.name if folder.parent == run else folder.parent.name
    return [name or stage, state, finished, f"{_size(folder) / 1e6:.1f}", str(folder.relative_to(run))]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
