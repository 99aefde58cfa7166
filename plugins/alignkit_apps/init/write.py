"""Recognizes the data, checks the recipe that follows from them, and writes it with the schema for editors."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from alignkit.arguments import refuse
from alignkit.data.files import file_rows
from alignkit.data.group import Group, resolved_pairs, why_not_demonstration
from alignkit.data.reading import DataSource, OtherColumns, UnnamedFormat, renamings_of
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, OutOfResource
from alignkit.io.lookup import is_file
from alignkit.plugins import load_plugins, plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.shipped import SCHEMA
from alignkit.registry import Component
from alignkit.runs.data import RunData
from alignkit_apps.catalog.json_schema import schema_text
from alignkit_apps.init.text import EXAMPLE, Source, recipe_text

RECIPE = "recipe.yaml"
_ROWS = 50  # that are read to recognize a file
_KINDS: Mapping[str, tuple[str, Callable[[Group], bool]]] = {
    "demos": ("prompts with one good response each", lambda group: not why_not_demonstration(group)),
    "pairs": ("pairs of a better and a worse response", lambda group: bool(resolved_pairs(group))),
    "prompts": ("prompts", lambda group: bool(group.prompt)),
}
_COLUMNS = {"demos": ("prompt", "completion"), "pairs": ("prompt", "chosen", "rejected"), "prompts": ("prompt",)}


def write(folder: Path, base: str | None, given: Mapping[str, Path], columns: Mapping[str, str]) -> list[Path]:
    """Write a recipe, its schema and, without data, those of an example; return the files, the recipe first.

    base: None: a small model. given: files by kind: demos, pairs, prompts. columns: of any of the files, by the names
    that a format expects.
    Raises RecipeError or DataError if nothing can be made of the data, or if a file is in the way.
    """
    if "prompts" in given and "pairs" not in given:
        refuse("--prompts needs --pairs: without a reward, nothing can be learned on prompts", "add --pairs FILE")
    example = not given
    texts = {f"data/{kind}.jsonl": text for kind, text in EXAMPLE.items()} if example else {}
    absolute = {kind: _source(kind, path, columns) for kind, path in given.items()}
    if unused := columns.keys() - {name for source in absolute.values() for name in source.columns}:
        name = min(unused)
        refuse(f"--columns {name}={columns[name]}: no file has a column '{columns[name]}'")
    sources = {kind: replace(source, path=_named(given[kind], folder)) for kind, source in absolute.items()}
    if example:
        absolute = sources = {kind: Source(f"data/{kind}.jsonl", "an example") for kind in EXAMPLE}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"
    recipe = recipe_text(name, base, sources, example=example)
    _check(recipe_text(name, base, absolute, example=example), texts)
    files = {RECIPE: recipe, SCHEMA: schema_text(load_plugins().registry), **texts}
    return _written({folder / file: text for file, text in files.items()})


def _source(kind: str, path: Path, columns: Mapping[str, str]) -> Source:
    """A data file and its format. Raises RecipeError if there is no file, DataError if it holds something else."""
    if not is_file(path):
        refuse(f"--{kind}: no such file: {path}")
    first = next((row for _, row in file_rows(path)), None) if columns else None
    has = first if isinstance(first, Mapping) else ()
    renamed = {name: column for name, column in columns.items() if column in has}
    source = DataSource(None, path=path.resolve(), limit=_ROWS, columns=renamed)
    try:
        loaded = _read(source)
    except UnnamedFormat as error:
        if len(error.formats) > 1:
            raise
        source = replace(source, format=_component(error.formats[0]))
        loaded = _read(source)
    except OtherColumns as error:
        source = replace(source, columns=renamed | _renaming(kind, path, error))
        loaded = _read(source)
    wanted, fits = _KINDS[kind]
    if not any(map(fits, loaded.groups)) and (more := _unread(kind, loaded.groups)):
        source = replace(source, columns=source.columns | more)
        loaded = _read(source)
    found = loaded.sources[0].format
    several = len({json.dumps(group.prompt, default=str) for group in loaded.groups}) > 1
    if not any(map(fits, loaded.groups)):
        held, other = _held(loaded.groups)
        help = f"\nhelp: give such a file as --{other}" if other else ""
        raise DataError(f"--{kind} {path}: expected {wanted}, but the file holds {held} (format {found}){help}")
    return Source(str(path.resolve()), found, source.format is not None, source.columns, several)


def _renaming(kind: str, path: Path, error: OtherColumns) -> dict[str, str]:
    """What columns mean by their usual names: expected -> actual. Raises DataError if that is not clear."""
    wanted = set(_COLUMNS[kind])
    if error.renamings:
        return next((one for one in error.renamings.values() if wanted <= {*one, *error.columns}), None) or next(
            iter(error.renamings.values())
        )
    needed = [name for name in _COLUMNS[kind] if name not in error.columns]
    others = [name for name in error.columns if name not in wanted and name.lower() not in ("id", "index", "")]
    if len(others) < len(needed):
        raise DataError(str(error).replace("`columns: {expected: actual}`", "--columns EXPECTED=ACTUAL")) from error
    guess = ",".join(f"{name}={column}" for name, column in zip(needed, others, strict=False))
    text = f"--{kind} {path}: nothing says which of its columns ({', '.join(error.columns)}) is the"
    raise DataError(f"{text} {', '.join(needed)}\nhelp: name them, as in --columns {shlex.quote(guess)}") from error


def _unread(kind: str, groups: Sequence[Group]) -> dict[str, str]:
    """The columns with answers, by their usual names, of a file that reads as prompts alone: expected -> actual."""
    if not groups or not groups[0].prompt or groups[0].responses:
        return {}
    formats = {one.name: one.implementation for one in plugins().registry.registrations("format")}
    some = renamings_of({"prompt": "a prompt", **groups[0].meta}, formats)
    return next((columns for columns in some.values() if {*_COLUMNS[kind]} == {"prompt", *columns}), {})


def option_for(path: Path) -> str:
    """The option that takes a data file: --demos, if the file does not say which."""
    for kind in ("pairs", "demos", "prompts"):
        with suppress(AlignkitError):
            _source(kind, path, {})
            return f"--{kind}"
    return "--demos"


def _held(groups: Sequence[Group]) -> tuple[str, str]:
    """What a file holds, in words, and the option that takes such a file; empty if none does."""
    for kind in ("pairs", "demos"):
        words, fits = _KINDS[kind]
        if any(map(fits, groups)):
            return words, kind
    if not any(group.prompt for group in groups):
        return "raw text", ""
    if any(group.responses for group in groups):
        return "responses that are labeled as bad, or of which none is better", ""
    return "prompts without responses", "prompts"


def _read(source: DataSource) -> Loaded:
    return RunData(lambda stage: Path(stage), 0).read(DataSpec((source,)))


def _component(name: str) -> Component:
    registration = plugins().registry.get("format", name)
    return Component("format", name, registration, registration.implementation.Options())


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
        refuse(f"already exists: {', '.join(taken)}", "name another folder: alignkit init FOLDER")
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutOfResource(f"cannot write {path}: {reason}\n  help: name another folder") from error
    return list(texts)
