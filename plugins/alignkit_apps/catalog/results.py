"""The results in a run's folder: current ones, earlier ones, interrupted, waiting and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from alignkit.errors import Problem, RecipeError
from alignkit.io.stage_results import EARLIER, find_result, is_result_name, read_record, results_of_stage
from alignkit.runs.files import RECIPE
from alignkit.runs.process import locked
from alignkit.runs.stage_store import DAMAGED

STATES = {EARLIER: "earlier", DAMAGED: "damaged"}


@dataclass(frozen=True)
class Result:
    """A stage's result. name: `align@ppo`; the stage's own for a step, and for what is not complete.

    size: bytes. finished: when stage.json was written, or an empty string.
    """

    name: str
    stage: str
    state: str
    hash: str
    plugin: str
    finished: str
    size: int
    folder: Path


def results_of(folder: Path) -> list[Result]:
    """All results in a run's folder, or the one that `RUN/align@ppo` names. Raises RecipeError if there is none."""
    if is_result_name(folder.name) and (folder.parent / RECIPE).is_file():
        one = find_result(folder.parent, folder.name)
        return [_result(one.folder, one.stage, "current" if one.current else "earlier", one.name)]
    _check_run(folder)
    current = [_result(path.parent, path.parent.name, "current") for path in sorted(folder.glob("*/stage.json"))]
    found = [*current, *_others(folder)]
    named = {one.folder: one.name for stage in {one.stage for one in found} for one in results_of_stage(folder, stage)}
    return [replace(one, name=named.get(one.folder, one.stage)) for one in found]


def prune(folder: Path) -> tuple[int, int]:
    """Delete all results but the current ones. Returns how many there were, and their size in bytes."""
    _check_run(folder)
    with locked(folder):
        others = list(_others(folder))
        for name in STATES:
            shutil.rmtree(folder / name, ignore_errors=True)
    return len(others), sum(result.size for result in others)


def _check_run(folder: Path) -> None:
    if not (folder / RECIPE).is_file():
        raise RecipeError([Problem(f"{folder} is not the folder of a run: it has no {RECIPE}")])


def _others(folder: Path) -> Iterator[Result]:
    for name, state in STATES.items():
        for path in sorted((folder / name).glob("*/[!.]*")):
            yield _result(path, path.parent.name, state)


def _result(folder: Path, stage: str, state: str, name: str = "") -> Result:
    record = read_record(folder)
    file = folder / "stage.json"
    finished = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M") if file.exists() else ""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if state != "damaged" and not record.get("complete"):
        ended = "interrupted" if "waits_for" not in record else "waiting"
        state, finished = (ended if state == "current" else f"{state}, {ended}"), ""
    return Result(name or stage, stage, state, record.get("hash", ""), record.get("plugin", ""), finished, size, folder)
