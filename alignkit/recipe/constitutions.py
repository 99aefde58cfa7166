"""Reads the constitution of a recipe: a YAML file with a list of principles, or such a list in the recipe itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.constitution import Principle
from alignkit.errors import RecipeError, did_you_mean
from alignkit.io.lookup import exists
from alignkit.recipe.document import Keys, plain_file
from alignkit.recipe.problems import Problems, path_text, shown
from alignkit.recipe.scope import Scope
from alignkit.recipe.shipped import shipped_folder
from alignkit.recipe.validation import validate


def shipped_constitutions() -> dict[str, Path]:
    """The constitutions that come with alignkit, by name."""
    return {file.stem: file for file in sorted((shipped_folder() / "constitutions").glob("*.yaml"))}


def read_constitution(raw: Any, keys: Keys, scope: Scope) -> tuple[Principle, ...] | None:
    """The principles of a file, of a shipped constitution, or of a list; None if anything in it is wrong."""
    if not isinstance(raw, str):
        return _principles(raw, keys, scope.problems)
    path = _file(raw, keys, scope)
    if path is None:
        return None
    principles, found = None, []
    try:
        inside = Problems(plain_file(path, "constitution"))
        principles, found = _principles(inside.document.data, (), inside), inside.items
    except RecipeError as error:
        found = list(error.problems)
    # Another stage may have read the same file.
    scope.problems.items += [problem for problem in found if problem not in scope.problems.items]
    return principles


def _file(text: str, keys: Keys, scope: Scope) -> Path | None:
    """The file that is named, or the shipped constitution of that name."""
    path, shipped = scope.paths.locate(text, keys), shipped_constitutions()
    if exists(path) or text in shipped:
        return path if exists(path) else shipped[text]
    help = scope.paths.meant_in_recipe(text, keys) or did_you_mean(text, shipped)
    help = help or f"looked for {path}; shipped constitutions: {', '.join(shipped)}"
    scope.problems.error(keys, f"no such constitution: {text}", help=help)
    return None


def _principles(raw: Any, keys: Keys, problems: Problems) -> tuple[Principle, ...] | None:
    before = len(problems)
    if not isinstance(raw, list) or not raw:
        got = "an empty list" if raw == [] else shown(raw)
        where = f"{path_text(keys)}: " if keys else ""
        expected = "expected a list of principles, each with 'name', and 'critique' and 'revise', or 'compare'"
        problems.error(keys, f"{where}{expected}, got {got}")
        return None
    found: list[Principle] = []
    names: set[str] = set()
    for index, item in enumerate(raw):
        principle = validate(Principle, item, (*keys, index), problems).value
        found += [] if principle is None else [principle]
        name = item.get("name") if isinstance(item, dict) else None  # also of one that is wrong otherwise
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if name in names:
            problems.error((*keys, index, "name"), f"the name '{name}' is used twice")
        names |= {name} if name else set()
    return tuple(found) if len(problems) == before else None
