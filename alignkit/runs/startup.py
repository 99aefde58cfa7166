"""The first line of a run, which is printed before torch is imported: that takes seconds."""

from __future__ import annotations

from pathlib import Path

import alignkit
from alignkit.io.progress import Reporter
from alignkit.recipe.schema import Recipe
from alignkit.runs.out_folder import check_out


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
