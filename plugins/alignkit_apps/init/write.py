"""Recognizes the data, checks the recipe that follows from them, and writes it with the schema for editors."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.arguments import refuse
from alignkit.data.group import Group, resolved_pairs, why_not_demonstration
from alignkit.data.hub import as_written
from alignkit.data.reading import DataSource, Formats, OtherColumns, RowReader, UnnamedFormat, renamings_of
from alignkit.data.sources import OR_SKIP, DataSpec, Loaded
from alignkit.errors import AlignkitError, BadRow, DataError, OutOfResource, Problem, RecipeError, did_you_mean
from alignkit.io.lookup import is_file
from alignkit.plugins import plugins
from alignkit.recipe.document import parse_document
from alignkit.recipe.load import build
from alignkit.recipe.shipped import SCHEMA
from alignkit.registry import Component
from alignkit.runs.data import RunData
from alignkit_apps.catalog.json_schema import schema_text
from alignkit_apps.init.columns import PASSAGES, templates
from alignkit_apps.init.text import EXAMPLE, Source, recipe_text

RECIPE = "recipe.yaml"
_ROWS = 50  # that are read to recognize a file
_KINDS: Mapping[str, tuple[str, Callable[[Group], bool]]] = {
    "demos": ("prompts with one good response each", lambda group: not why_not_demonstration(group)),
    "pairs": ("pairs of a better and a worse response", lambda group: bool(resolved_pairs(group))),
    "prompts": ("prompts", lambda group: bool(group.prompt)),
}
_COLUMNS = {"demos": ("prompt", "completion"), "pairs": ("prompt", "chosen", "rejected"), "prompts": ("prompt",)}
_USUAL = ("prompt", "completion", "chosen", "rejected")
_NO_RESPONSES = "prompts without responses"
_MISSPELLED = 0.8  # as alike as this, another name is one of _USUAL


def write(
    folder: Path, base: str | None, given: Mapping[str, Path], columns: Mapping[str, str]
) -> tuple[list[Path], list[str]]:
    """Write a recipe, its schema and, without data, those of an example.

    Returns the files, the recipe first, and in lines what was assumed about the data.

    base: None: a small model. given: files by kind: demos, pairs, prompts. columns: of any of the files, by the names
    that a format expects.
    Raises RecipeError or DataError if nothing can be made of the data, or if a file is in the way.
    """
    if "prompts" in given and "pairs" not in given:
        refuse("--prompts needs --pairs: without a reward, nothing can be learned on prompts", "add --pairs FILE")
    example = not given
    _check_columns(given, columns)
    absolute = {kind: _source(kind, path, columns) for kind, path in given.items()}
    sources = {kind: replace(source, path=_named(given[kind], folder)) for kind, source in absolute.items()}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        if example:
            files = {f"data/{kind}.jsonl": text for kind, text in EXAMPLE.items()}
            sources = {kind: Source(f"data/{kind}.jsonl", "an example") for kind in EXAMPLE}
            absolute = {kind: replace(source, path=f"{place}/{kind}.jsonl") for kind, source in sources.items()}
            for kind, text in EXAMPLE.items():
                Path(place, f"{kind}.jsonl").write_text(text, encoding="utf-8")
        _check(recipe_text(name, base, absolute, example=example), folder / RECIPE)
    recipe = recipe_text(name, base, sources, example=example)
    files = {RECIPE: recipe, SCHEMA: schema_text(plugins().registry), **files}
    assumed = [line for source in sources.values() for line in source.assumed()]
    return _written({folder / file: text for file, text in files.items()}), assumed


def _check_columns(given: Mapping[str, Path], columns: Mapping[str, str]) -> None:
    """Raise RecipeError if there is no file, or if `columns` has a misspelled name or a column that no file has."""
    for kind, path in given.items():
        if not is_file(path):
            refuse(f"--{kind}: no such file: {path}")
    expected = set(re.findall("[a-z_]+", " ".join(format.wants for format in _formats().values())))
    for name in columns:
        near = difflib.get_close_matches(name, _USUAL, 1, _MISSPELLED)
        if near and name not in {*_USUAL, *expected}:
            refuse(f"--columns: no format expects the name '{name}'", f"did you mean '{near[0]}'?")
    heads = {path: _head(path) for path in given.values()} if columns else {}
    if any(isinstance(head, BadRow) for head in heads.values()):
        return  # reading the file says more
    have = {path: [*map(str, head)] if isinstance(head, Mapping) else [] for path, head in heads.items()}
    everywhere = [column for some in have.values() for column in some]
    for name, column in columns.items():
        if column not in everywhere:
            lists = "; ".join(f"{path} has {', '.join(some) or 'no columns'}" for path, some in have.items())
            help = " ".join(filter(None, (did_you_mean(column, everywhere), lists)))
            refuse(f"--columns {name}={column}: no file has a column '{column}'", help)


def _head(path: Path) -> Any:
    """The first row of a file; a `BadRow` if it has none."""
    rows = RowReader(DataSource(None, path=path.resolve()), _formats()).rows(Path, as_written)
    return next((row for _, row in rows), BadRow("the file is empty"))


def _source(kind: str, path: Path, columns: Mapping[str, str]) -> Source:
    """A data file and its format. Raises DataError if it holds something else than such data."""
    head = _head(path)
    has = [*map(str, head)] if isinstance(head, Mapping) else []
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
        said = any({*_COLUMNS[kind]} <= {*one, *has} for one in error.renamings.values())
        said = said and not PASSAGES & {name.lower() for name in has}  # which a new name of the question would lose
        guess = None if said or renamed else _guess(kind, head, source)
        source = guess or replace(source, columns=renamed | _renaming(kind, path, error, has, renamed))
        loaded = _read(source)
    wanted, fits = _KINDS[kind]
    if not any(map(fits, loaded.groups)) and (more := _unread(kind, loaded.groups)):
        source = replace(source, columns=source.columns | more)
        loaded = _read(source)
    if not renamed and _asks_only(loaded.groups) and kind == "demos" and (guess := _guess(kind, head, source)):
        source, loaded = guess, _read(guess)
    found = loaded.sources[0].format
    several = len({json.dumps(group.prompt, default=str) for group in loaded.groups}) > 1
    if not any(map(fits, loaded.groups)):
        held, help = _held(loaded.groups, path)
        texts = [name for name, value in loaded.groups[0].meta.items() if isinstance(value, str)]
        if held == _NO_RESPONSES and (asked := _unclear(kind, has, source.columns, texts)):
            raise DataError(f"--{kind} {path}: {asked}\n  or, if it holds prompts alone, give it as --prompts")
        text = f"expected {wanted}, but the file holds {held} (format {found})"
        raise DataError(f"--{kind} {path}: {text}" + (f"\nhelp: {help}" if help else ""))
    template: dict[str, str] = {}
    unused: list[str] = []
    if found == "template" and source.format is not None:
        template = source.format.options.model_dump(exclude_unset=True)
        used = source.format.registration.implementation(source.format.options).columns
        unused = [name for name in has if name not in used]
    return Source(str(path.resolve()), found, source.format is not None, source.columns, several, template, unused)


def _guess(kind: str, head: Any, source: DataSource) -> DataSource | None:
    """The source with the first template that reads its rows as such data; None if none does."""
    for template in templates(kind, head):
        guess = replace(source, format=_component("template", **template), columns={})
        with suppress(DataError):
            if all(map(_KINDS[kind][1], _read(guess).groups)):
                return guess
    return None


def _asks_only(groups: Sequence[Group]) -> bool:
    return bool(groups) and bool(groups[0].prompt) and not any(group.responses for group in groups)


def _renaming(
    kind: str, path: Path, error: OtherColumns, columns: Sequence[str], renamed: Mapping[str, str]
) -> dict[str, str]:
    """What columns mean by their usual names: expected -> actual. Raises DataError if that is not clear.

    columns, renamed: as in `_unclear`.
    """
    wanted = set(_COLUMNS[kind])
    if error.renamings:
        return next((one for one in error.renamings.values() if wanted <= {*one, *error.columns}), None) or next(
            iter(error.renamings.values())
        )
    if asked := _unclear(kind, columns, renamed, columns):
        raise DataError(f"--{kind} {path}: {asked}") from error
    raise DataError(str(error).replace("`columns: {expected: actual}`", "--columns EXPECTED=ACTUAL")) from error


def _unclear(kind: str, columns: Sequence[str], renamed: Mapping[str, str], texts: Sequence[str]) -> str:
    """That nothing says what a file's columns mean, and how to name them; empty if it has too few.

    columns: of the file. renamed: expected -> actual, for those that are clear. texts: those that may be the others.
    """
    taken = {*_COLUMNS[kind], *renamed.values()}
    needed = [name for name in _COLUMNS[kind] if name not in {*columns, *renamed}]
    others = [name for name in texts if name not in taken and name.lower() not in ("id", "index", "")]
    if not needed or len(others) < len(needed):
        return ""
    guess = {**renamed, **dict(zip(needed, others, strict=False))}
    option = shlex.quote(",".join(f"{name}={column}" for name, column in guess.items()))
    verb = "are" if len(needed) > 1 else "is"
    words = " and ".join(filter(None, (", ".join(f"the {name}" for name in needed[:-1]), f"the {needed[-1]}")))
    text = f"nothing says which of its columns ({', '.join(columns)}) {verb} {words}"
    return f"{text}\nhelp: name them, as in --columns {option}"


def _unread(kind: str, groups: Sequence[Group]) -> dict[str, str]:
    """The columns with answers, by their usual names, of a file that reads as prompts alone: expected -> actual."""
    if not _asks_only(groups[:1]):
        return {}
    some = renamings_of({"prompt": "a prompt", **groups[0].meta}, _formats())
    return next((columns for columns in some.values() if {*_COLUMNS[kind]} == {"prompt", *columns}), {})


def kind_of_file(path: Path) -> str:
    """What a data file holds: pairs, demos or prompts; demos, if the file does not say it."""
    for kind in ("pairs", "demos", "prompts"):
        with suppress(AlignkitError):
            _source(kind, path, {})
            return kind
    return "demos"


def _held(groups: Sequence[Group], path: Path) -> tuple[str, str]:
    """What a file holds, in words, and what to do with it; empty if nothing can be done."""
    for kind in ("pairs", "demos"):
        words, fits = _KINDS[kind]
        if any(map(fits, groups)):
            return words, f"give such a file as --{kind}"
    if not any(group.prompt for group in groups):
        return "raw text", ""
    responses = [response for group in groups for response in group.responses]
    if not responses:
        return _NO_RESPONSES, "give such a file as --prompts"
    if any(response.label is not None or response.rank is not None or response.scores for response in responses):
        return "responses that are labeled as bad, or of which none is better", ""
    return "responses that nobody has compared yet", f"compare them: alignkit label {shlex.quote(str(path))}"


def _formats() -> Formats:
    return {one.name: one.implementation for one in plugins().registry.registrations("format")}


def _read(source: DataSource) -> Loaded:
    """The rows of a source. Raises DataError, which does not advise what only a recipe can say."""
    try:
        return RunData(Path, 0).read(DataSpec((source,)))
    except DataError as error:
        if not str(error).endswith(OR_SKIP):
            raise
        raise DataError(str(error).removesuffix(OR_SKIP)) from error


def _component(name: str, **options: str) -> Component:
    registration = plugins().registry.get("format", name)
    return Component("format", name, registration, registration.implementation.Options(**options))


def _named(path: Path, folder: Path) -> str:
    """A file as a recipe in the folder names it."""
    place = path.resolve()
    return str(place.relative_to(folder.resolve())) if place.is_relative_to(folder.resolve()) else str(place)


def _check(recipe: str, path: Path) -> None:
    """Raise RecipeError if the recipe, which would be written to the path, is not valid."""
    wrong: list[Problem] = []
    try:
        build(parse_document(recipe, path, (), wrong), plugins().registry, wrong)
    except RecipeError as error:  # nobody can look at a file that is not written
        raise RecipeError([replace(one, file=f"(not written) {path}") for one in error.problems]) from error


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
