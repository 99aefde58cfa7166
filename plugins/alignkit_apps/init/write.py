"""Recognizes the data, and writes the recipe that follows from them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignkit.commands import refuse
from alignkit.data.group import Group, resolved_pairs, why_not_demonstration
from alignkit.data.sources import (
    DataSource,
    DataSpec,
    SourceReader,
    UnknownFormat,
    sides,
)
from alignkit.errors import AlignkitError, DataError, did_you_mean
from alignkit.io.digest import commit_of
from alignkit.io.text import is_file
from alignkit.plugins import plugins
from alignkit.registry import Component
from alignkit.runs.fingerprint import RunData
from alignkit_apps.catalog.json_schema import schema_line
from alignkit_apps.init.copying import write_files
from alignkit_plugins.data.readings import Reading, readings_of

RECIPE = "recipe.yaml"
STARTER = Path(__file__).with_name("starter")  # the template of a recipe, and the data of the example
_ROWS = 100_000  # that are read at most to find out what a file holds
_HELD_OUT = 0.2  # of the prompts
# What a file may hold, the likeliest first: in words, how its columns are named, and what is true of such a row.
_KINDS: Mapping[str, tuple[str, str, Callable[[Group], Any]]] = {
    "pairs": ("pairs of a better and a worse response", "prompt=A,chosen=B,rejected=C", resolved_pairs),
    "demos": (
        "prompts with one good response each",
        "prompt=A,completion=B",
        lambda row: not why_not_demonstration(row),
    ),
    "prompts": ("prompts without responses", "prompt=A", lambda row: row.prompt and not row.responses),
}


@dataclass(frozen=True)
class Source:
    """A data file as the recipe names it, and its format.

    named: whether the recipe must name the format. columns: those that the recipe renames: expected -> actual.
    several: whether some prompts can be held out. skipped: rows that the recipe cannot use, and why, in words.
    """

    path: str
    format: str
    named: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    several: bool = True
    skipped: str = ""

    def assumed(self) -> list[str]:
        """What the file does not say, in a line; none if it says everything."""
        means = [f"the {name} is '{column}'" for name, column in self.columns.items()]
        means += [f"the format is {self.format}"] if self.named else []
        lines = [f"assumed of {self.path}: {', '.join(means)}"] if means else []
        return [*lines, f"left out of {self.path}: {self.skipped}"] if self.skipped else lines

    def yaml(self, part: str = "") -> str:
        """The source in a recipe, with some prompts held out. part: training or validation; empty: both."""
        keys = {"path": quoted(self.path)}
        if self.columns:
            pairs = [f"{quoted(name)}: {quoted(column)}" for name, column in self.columns.items()]
            keys["columns"] = f"{{{', '.join(pairs)}}}"
        if self.several:
            keys["validation"] = str(_HELD_OUT)
            keys |= {"part": part} if part else {}
        if self.skipped:
            keys["on_bad_row"] = "skip"
        text = f"{{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}" if len(keys) > 1 else keys["path"]
        if self.named:
            return f"{{{self.format}: {text}}}"
        return text if self.columns else f"{text} # recognized: {self.format}"


def write(
    folder: Path, base: str | None, given: Mapping[str, Path], columns: Mapping[str, str]
) -> tuple[list[Path], list[str]]:
    """Write a recipe and, without data, those of an example.

    Returns the files, the recipe first, and in lines what was assumed about the data.

    base: None: a small model. given: files by kind: demos, pairs, prompts. columns: of any of the files, by the names
    that a format expects.
    Raises RecipeError or DataError if nothing can be made of the data, or if a file is in the way.
    """
    if "prompts" in given and "pairs" not in given:
        refuse("--prompts needs --pairs: without a reward, nothing can be learned on prompts", "add --pairs FILE")
    _check_columns(given, columns)
    example = {} if given else {kind: STARTER / f"{kind}.jsonl" for kind in _KINDS}
    named = {kind: f"data/{path.name}" for kind, path in example.items()}
    named |= {kind: _named(path, folder) for kind, path in given.items()}
    sources = {kind: _source(kind, path, columns) for kind, path in (given or example).items()}
    sources = {kind: replace(source, path=named[kind]) for kind, source in sources.items()}
    files = Environment(loader=FileSystemLoader(STARTER), undefined=StrictUndefined, trim_blocks=True)
    recipe = files.get_template(f"{RECIPE}.j2").render(
        schema=schema_line(plugins()),
        example=bool(example),
        name=quoted(re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"),
        base=quoted(base) if base else "",
        **{kind: sources.get(kind) for kind in _KINDS},
    )
    data = {folder / named[kind]: path.read_bytes() for kind, path in example.items()}
    assumed = [line for source in sources.values() for line in source.assumed()]
    return write_files({folder / RECIPE: recipe.encode(), **data}), assumed


def quoted(text: str) -> str:
    """A text as YAML, in quotes if it needs them."""
    plain = re.fullmatch(r"[A-Za-z_/.][\w./-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _check_columns(given: Mapping[str, Path], columns: Mapping[str, str]) -> None:
    """Raise RecipeError if there is no such file, or if `columns` has a column that no file has."""
    for kind, path in given.items():
        if not is_file(path):
            refuse(f"--{kind}: no such file: {path}")
    have = [name for path in given.values() for name in _first_row(path)] if columns else []
    for name, column in columns.items():
        if column not in have:
            help = did_you_mean(column, have) or f"columns: {', '.join(have)}"
            refuse(f"--columns {name}={column}: no file has a column '{column}'", help)


def _first_row(path: Path) -> Mapping[str, Any]:
    """The first row of a file; empty if it is no table."""
    reader = SourceReader(
        DataSource(path=path.resolve()), plugins().usable("format"), Path, partial(commit_of, "dataset")
    )
    row = next((row for _, row in reader.numbered_rows()), None)
    return row if isinstance(row, Mapping) else {}


def _source(kind: str, path: Path, columns: Mapping[str, str]) -> Source:
    """A data file and its format, with `columns`, or else with those by which a format recognizes the file.

    Raises DataError if it holds something else than such data.
    """
    row = _first_row(path)
    chosen = {name: column for name, column in columns.items() if column in row}
    readings = [Reading("", chosen)]
    if not chosen:
        readings += readings_of(row, plugins().usable("format"))
    problems = []
    for reading in readings:
        try:
            return _read(kind, path, reading)
        except UnknownFormat as error:
            problems.append(DataError(f"{error}\nhelp: say which columns are meant: --columns {_KINDS[kind][1]}"))
        except DataError as error:
            problems.append(error)
    raise problems[0]


def _read(kind: str, path: Path, reading: Reading) -> Source:
    """A data file and its format, read in one way. Raises DataError like `_source`."""
    wanted, names, fits = _KINDS[kind]
    named = None
    if reading.format and not reading.columns:
        registration = plugins().get("format", reading.format)
        named = Component("format", registration.name, registration, registration.implementation.Options())
    source = DataSource(path=path.resolve(), limit=_ROWS, columns=dict(reading.columns), on_bad_row="skip")
    loaded = RunData(Path, 0).read(DataSpec((source.in_format(named),)))
    found = loaded.sources[0].format
    if not any(map(fits, loaded.groups)):
        others = {name: words for name, (words, _, fit) in _KINDS.items() if any(map(fit, loaded.groups))}
        other = next(iter(others), "")
        text = f"--{kind} {path}: expected {wanted}, but the file holds {others.get(other, 'none')} (format {found})"
        help = f"give such a file as --{other}" if other else f"compare responses: alignkit label {quote(str(path))}"
        raise DataError(f"{text}\nhelp: {help}, or say which columns are meant: --columns {names}")
    several = len(set(sides(loaded.groups, [None]))) > 1
    demonstrations = loaded.groups if kind == "demos" else []
    unfit = [f"{group.origin}: the row {why}" for group in demonstrations if (why := why_not_demonstration(group))]
    bad = [*map(str, loaded.skipped), *unfit]
    skipped = f"{len(bad)} rows, the first {bad[0]}" if bad else ""
    return Source(str(path.resolve()), found, named is not None, reading.columns, several, skipped)


def kind_of_file(path: Path) -> str:
    """What a data file holds: pairs, demos or prompts; demos, if the file does not say it."""
    for kind in _KINDS:
        with suppress(AlignkitError):
            _source(kind, path, {})
            return kind
    return "demos"


def _named(path: Path, folder: Path) -> str:
    """A file as a recipe in the folder names it: both can be moved together."""
    return os.path.relpath(path.resolve(), folder.resolve())
