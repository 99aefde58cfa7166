"""Where a run may begin, and its first line, which is printed before torch is imported: that takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import alignkit
from alignkit.errors import Problem, RecipeError
from alignkit.io.lookup import exists
from alignkit.io.progress import Reporter
from alignkit.recipe.schema import Recipe
from alignkit.runs.files import FACTS, MARKDOWN, PAGE, RECIPE, STARTS
from alignkit.runs.stage_store import is_empty
from alignkit.runs.template_date import DATE

OWN_FOLDERS = ("cache", "trackers")  # next to the stages' folders
_OWN_FILES = ("metrics.jsonl", DATE, PAGE, MARKDOWN, FACTS)  # it only adds to run.log and starts.jsonl


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
