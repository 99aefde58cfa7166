"""Recognizes the data, checks the recipe that follows from them, and writes it with the schema for editors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from alignkit.data.group import resolved_pairs
from alignkit.data.reading import DataSource
from alignkit.data.sources import DataSpec
from alignkit.errors import DataError, OutOfResource, Problem, RecipeError
from alignkit.io.lookup import is_file
from alignkit.plugins import load_plugins
from alignkit.recipe.json_schema import schema_text
from alignkit.recipe.load import load_recipe
from alignkit.recipe.shipped import SCHEMA
from alignkit.starter.text import EXAMPLE, Source, recipe_text

RECIPE = "recipe.yaml"
_ROWS = 50  # that are read to recognize a file
_WANTED = {"demos": "responses to learn from", "pairs": "a better and a worse response", "prompts": "prompts"}


def write(folder: Path, base: str | None, given: Mapping[str, Path]) -> list[Path]:
    """Write a recipe, its schema and, without data, those of an example; return the files, the recipe first.

    base: None: a small model. given: files by kind: demos, pairs, prompts.
    Raises RecipeError or DataError if nothing can be made of the data, or if a file is in the way.
    """
    if "prompts" in given and "pairs" not in given:
        _refuse("--prompts needs --pairs: without a reward, nothing can be learned on prompts", "add --pairs FILE")
    example = not given
    formats = {kind: _format(kind, path) for kind, path in given.items()} or dict.fromkeys(EXAMPLE, "an example")
    texts = {f"data/{kind}.jsonl": text for kind, text in EXAMPLE.items()} if example else {}
    paths = {kind: _named(given[kind], folder) if given else f"data/{kind}.jsonl" for kind in formats}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"
    sources = {kind: Source(path, formats[kind]) for kind, path in paths.items()}
    recipe = recipe_text(name, base, sources, example=example)
    absolute = {kind: Source(str(path.resolve()), formats[kind]) for kind, path in given.items()}
    _check(recipe_text(name, base, absolute or sources, example=example), texts)
    files = {RECIPE: recipe, SCHEMA: schema_text(load_plugins().registry), **texts}
    return _written({folder / file: text for file, text in files.items()})


def _format(kind: str, path: Path) -> str:
    """The format of a data file. Raises RecipeError if there is no file, DataError if it holds something else."""
    from alignkit.runs.data import RunData

    if not is_file(path):
        _refuse(f"--{kind}: no such file: {path}", "")
    load_plugins()
    data = RunData(lambda stage: path, 0)
    loaded = data.read(DataSpec((DataSource(None, path=path.resolve(), limit=_ROWS),)))
    fits = {
        "demos": lambda group: any(response.text for response in group.responses),
        "pairs": lambda group: bool(resolved_pairs(group)),
        "prompts": lambda group: bool(group.prompt),
    }
    found = loaded.sources[0].format
    if not any(map(fits[kind], loaded.groups)):
        raise DataError(f"--{kind} {path}: its rows ({found}) do not have {_WANTED[kind]}")
    return str(found)


def _named(path: Path, folder: Path) -> str:
    """A file as a recipe in the folder names it."""
    place = path.resolve()
    return str(place.relative_to(folder.resolve())) if place.is_relative_to(folder.resolve()) else str(place)


def _check(recipe: str, texts: Mapping[str, str]) -> None:
    """Raise RecipeError if the recipe is not valid. texts: of the files next to it."""
    with tempfile.TemporaryDirectory() as place:
        for name, text in {RECIPE: recipe, **texts}.items():
            (Path(place) / name).parent.mkdir(exist_ok=True)
            (Path(place) / name).write_text(text, encoding="utf-8")
        load_recipe(Path(place) / RECIPE)


def _written(texts: Mapping[Path, str]) -> list[Path]:
    """Write files that do not exist yet: all of them, or none."""
    if taken := [str(path) for path in texts if path.exists() or path.is_symlink()]:
        _refuse(f"in the way: {', '.join(taken)}", "name another folder: alignkit init FOLDER")
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutOfResource(f"cannot write {path}: {reason}\n  help: name another folder") from error
    return list(texts)


def _refuse(message: str, help: str) -> None:
    raise RecipeError([Problem(message, help=help)])
