"""Where a run may begin, and its first line, which is printed before torch is imported: that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import Problem, RecipeError
from alignkit.io.console import Reporter
from alignkit.io.lookup import exists
from alignkit.io.results import FACTS, MARKDOWN, PAGE, RECIPE, STARTS, is_empty, read_record
from alignkit.outcome import Result
from alignkit.recipe.schema import Recipe

OWN_FOLDERS = ("cache", "trackers")  # next to the stages' folders
_OWN_FILES = ("metrics.jsonl", PAGE, MARKDOWN, FACTS)  # it only adds to run.log and starts.jsonl


def begin(recipe: Recipe, out: Path | None = None) -> tuple[Path, Reporter]:
    """Say what will run, and where. Returns the run's folder (default `runs/NAME`) and its reporter.

    Raises RecipeError if the run would replace what is in that folder and is no run's.
    """
    folder, count = folder_of(recipe, out), len(recipe.stages)
    check_out(folder, recipe.stages)
    reporter = Reporter()
    stages = f"{count} stage{'s' if count > 1 else ''}"
    reporter.say(f"alignkit {alignkit.__version__}: {recipe.name}, {stages}, {folder}")
    return folder, reporter


def folder_of(recipe: Recipe, out: Path | None) -> Path:
    """Where a recipe runs."""
    return out or Path("runs") / recipe.name


def result_of(recipe: Recipe, folder: Path) -> Result:
    """What a run that is complete has left, which is printed already."""
    stages = {name: _stage(folder / name) for name in recipe.stages}
    files = [folder / name for name in ("run.log", "metrics.jsonl", RECIPE, PAGE, FACTS)]
    written = {file.name: file for file in files if exists(file)}
    return Result("run", {"recipe": recipe.name, "folder": folder, "files": written, "stages": stages})


def _stage(folder: Path) -> dict[str, Any]:
    """metrics: the last line of them."""
    record, metrics = read_record(folder), folder / "metrics.jsonl"
    last = metrics.read_text(encoding="utf-8").splitlines()[-1:] if exists(metrics) else []
    facts = {name: record.get(name) for name in ("plugin", "seconds", "summary")}
    return {"folder": folder, **facts, "metrics": json.loads(last[0]) if last else {}}


def check_out(folder: Path, stages: Iterable[str]) -> None:
    """Raise RecipeError if a run of these stages would replace what is in the folder: a user's files, or another run.

    A run of other stages only is another one: its results would stay, but no longer its recipe and its report.
    """
    names, help = list(stages), "choose another folder, such as --out runs/NAME"
    if exists(folder / STARTS) or exists(folder / RECIPE):
        found = sorted(path.parent.name for path in folder.glob("*/stage.json"))
        if found and not set(found) & set(names):
            others = ", ".join(f"'{name}'" for name in found)
            text = f"--out {folder} holds another run, whose stages this recipe does not have: {others}"
            raise RecipeError([Problem(text, help=help)])
        return
    paths = [folder / name for name in (*names, *OWN_FOLDERS, *_OWN_FILES)]
    taken = [f"'{path.name}'" for path in paths if exists(path) and not is_empty(path)]
    if taken:
        text = f"--out {folder} is not the folder of a run, and a run would replace what is in it: {', '.join(taken)}"
        raise RecipeError([Problem(text, help=help)])
