"""The results in a run's folder: current ones, earlier ones, interrupted, waiting and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from alignkit.errors import Problem, RecipeError
from alignkit.runs.process import locked
from alignkit.runs.stage_store import DAMAGED, EARLIER, read_record

STATES = {EARLIER: "earlier", DAMAGED: "damaged"}


@dataclass(frozen=True)
class Result:
    """A stage's result. size: bytes. finished: when stage.json was written, or an empty string."""

    stage: str
    state: str
    hash: str
    plugin: str
    finished: str
    size: int
    folder: Path


def results_of(folder: Path) -> list[Result]:
    """All results in a run's folder. Raises RecipeError if it is none."""
    if not (folder / "recipe.resolved.yaml").is_file():
        raise RecipeError([Problem(f"{folder} is not the folder of a run: it has no recipe.resolved.yaml")])
    current = [_result(path.parent, path.parent.name, "current") for path in sorted(folder.glob("*/stage.json"))]
    return [*current, *_others(folder)]


def prune(folder: Path) -> tuple[int, int]:
    """Delete all results but the current ones. Returns how many there were, and their size in bytes."""
    results_of(folder)
    with locked(folder):
        others = list(_others(folder))
        for name in STATES:
            shutil.rmtree(folder / name, ignore_errors=True)
    return len(others), sum(result.size for result in others)


def _others(folder: Path) -> Iterator[Result]:
    for name, state in STATES.items():
        for path in sorted((folder / name).glob("*/[!.]*")):
            yield _result(path, path.parent.name, state)


def _result(folder: Path, stage: str, state: str) -> Result:
    record = read_record(folder)
    file = folder / "stage.json"
    finished = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M") if file.exists() else ""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if state != "damaged" and not record.get("complete"):
        ended = "interrupted" if "waits_for" not in record else "waiting"
        state, finished = (ended if state == "current" else f"{state}, {ended}"), ""
    return Result(stage, state, record.get("hash", ""), record.get("plugin", ""), finished, size, folder)
