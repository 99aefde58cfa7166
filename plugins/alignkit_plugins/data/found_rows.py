"""The rows of a data entry of the command line, in memory, with the groups that their format
reads.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignkit.commands import refuse
from alignkit.data.group import Group
from alignkit.data.sources import DataSpec, SourceReader
from alignkit.errors import BadRow, DataError
from alignkit.io.atomic import whole_file
from alignkit.io.digest import commit_of
from alignkit.plugins import plugins
from alignkit.recipe.yaml import plain_data
from alignkit_plugins.entries import recipe_of

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoder


@dataclass(frozen=True)
class Row:
    """A row of a file. number: from 1. raw: as parsed; None if it cannot be. bad: why it cannot be
    read, or empty.
    """

    file: str
    number: int
    raw: Any
    groups: Sequence[Group] = ()
    bad: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class Rows:
    """The rows of a data entry. name: of its files. format: that of the first one."""

    name: str
    format: str
    rows: list[Row]

    @property
    def unread(self) -> str:
        """That some rows cannot be read; empty if all can."""
        bad = [row for row in self.rows if row.bad]
        return (
            f"rows that cannot be read: {len(bad):,}, the first: {bad[0]}: {bad[0].bad}"
            if bad
            else ""
        )


def no_stage(name: str) -> Path:
    raise DataError(f"stage '{name}': only the rows of files can be looked at")


def read_rows(spec: DataSpec) -> Rows:
    """All rows, up to the limit of each source. Raises DataError if a source has none that can be
    read.
    """
    formats = plugins().usable("format")
    rows: list[Row] = []
    commit = partial(commit_of, "dataset")
    readers = [
        SourceReader(source, formats, no_stage, commit, place)
        for place, source in enumerate(spec.sources)
    ]
    for reader in readers:
        file, name = short(reader.source.name), reader.source.name
        found = list(reader.rows())
        for row in found:
            raw = None if isinstance(row.raw, BadRow) else row.raw
            rows.append(
                Row(file, row.number, raw, row.groups, "" if row.bad is None else str(row.bad))
            )
        if len(found) == len(reader.bad):
            why = (
                f"no row can be read; for example {reader.bad[0]}"
                if found
                else "the source is empty"
            )
            raise DataError(f"{name}: no usable row; {why}")
    return Rows(
        ", ".join(short(source.name) for source in spec.sources), readers[0].format_name, rows
    )


def short(name: str, folder: Path | None = None) -> str:
    """A path from a folder, by default the current one, if it is below it; any other name
    unchanged.
    """
    path, folder = Path(name), folder or Path.cwd()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else name


def entry(word: str, rules: Sequence[str] = ()) -> Any:
    """The options of a step `clean` of what `data:` may be: a file, a folder, a hub data set, or
    YAML as in a recipe.

    rules: its other options, as KEY=VALUE.
    """
    value = plain_data(word, f"'{word}'")
    if (
        isinstance(value, str)
        and not Path(value).is_file()
        and (Path(value).is_dir() or _on_hub(value))
    ):
        value = {"hub": value}
    return recipe_of(value, "alignkit data", rules).stages["data"].component.options


def _on_hub(word: str) -> bool:
    parts = word.split("/")
    return (
        len(parts) == 2
        and all(parts)
        and parts[0] not in (".", "..", "~")
        and not Path(word).suffix
    )


def encoder_of(model: str) -> Encoder:
    """The encoder of a model, named as in a recipe."""
    from alignkit.io.console import Reporter
    from alignkit.recipe.schema import BASE
    from alignkit.runs.bases import RunBase

    recipe = recipe_of([{"text": __file__}], "alignkit data", base=model)
    encoder = RunBase(BASE, recipe, Reporter(), download=True).encoder
    assert encoder is not None
    return encoder


# Writing


def as_json(row: Any) -> bytes:
    """A row as a line of JSON."""
    try:
        return f"{json.dumps(row, ensure_ascii=False, default=str)}\n".encode()
    except UnicodeEncodeError:  # half of a character
        return f"{json.dumps(row, default=str)}\n".encode()


def check_target(out: Path, spec: DataSpec) -> None:
    """Raise RecipeError for a file that is not JSON lines, or that the rows come from."""
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        refuse(f"--out {out}: JSON lines are written", f"name it {out.with_suffix('.jsonl').name}")
    sources = [source.path for source in spec.sources if source.path is not None]
    targets = [file for file in (out, removed_file(out)) if file.exists()]
    if any(file.samefile(path) for path in sources for file in targets):
        refuse(
            f"--out {out}: is what the rows come from, which is never changed", "name another file"
        )


def removed_file(out: Path) -> Path:
    """The file next to a cleaned one that says what was left out."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.removed.jsonl")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, compressed if it is called so; the same rows give the same bytes."""
    with whole_file(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield stream  # type: ignore[misc]
