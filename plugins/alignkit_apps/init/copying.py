"""Shipped recipes: what each does, and copies of one, with every file that it names, which can be edited."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit.errors import OutOfResource, Problem, RecipeError, RunFailed, did_you_mean
from alignkit.io.lookup import is_file
from alignkit.recipe.document import load_document
from alignkit.recipe.load import load_recipe
from alignkit.recipe.shipped import SCHEMA, SCHEMA_LINE, shipped, shipped_folder, shipped_recipe

LICENSES = "data/LICENSES.md"


def summary(path: Path) -> str:
    """What a recipe does: the comment `What:` of its file, up to the first sentence's end."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line == SCHEMA_LINE:
            continue
        if not line.startswith("#   " if words else "# What:"):
            break
        words += line.removeprefix("# What:").lstrip("#").split()
    return " ".join(words).partition(". ")[0].rstrip(".")


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a shipped recipe and the files that it names; return the copies, the recipe first.

    Raises RecipeError for an unknown name, and RunFailed if a file with other contents is in the way; nothing is
    written then.
    """
    recipe = shipped_recipe(name)
    if recipe is None:
        help = did_you_mean(name, shipped()) or f"shipped recipes: {', '.join(shipped())}"
        raise RecipeError([Problem(f"no shipped recipe: {name}", help=help)])
    root = shipped_folder()
    written = sorted(_recipe_files(recipe) - {recipe})
    named = sorted(set(_named(load_recipe(recipe).resolved, root)))
    copies = {
        folder / file.relative_to(root): file for file in (recipe, *written, *named, root / LICENSES, root / SCHEMA)
    }
    for copy, file in copies.items():
        if copy.exists() and not (copy.is_file() and copy.read_bytes() == file.read_bytes()):
            help = f"name another folder: alignkit init FOLDER --from {name}"
            raise RunFailed(f"{copy} is in the way: it is not the shipped file\n  help: {help}")
    try:
        for copy, file in copies.items():
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutOfResource(f"cannot write to {folder}: {reason}\n  help: copy to another folder") from error
    return list(copies)


def _recipe_files(recipe: Path) -> set[Path]:
    """The recipe and the files that it extends."""
    marks = [mark for pair in load_document(recipe).places.values() for mark in pair]
    return {recipe, *(Path(mark.file).resolve() for mark in marks if mark.line)}


def _named(value: Any, root: Path) -> Iterator[Path]:
    """The files below `root` that plain data names by absolute paths."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _named(child, root)
    if isinstance(value, str) and Path(value).is_relative_to(root) and is_file(value):
        yield Path(value)
