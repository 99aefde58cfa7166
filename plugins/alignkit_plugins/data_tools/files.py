"""The rows of a data entry of the command line, with the groups of each; and files of rows."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from alignkit.data.files import skips
from alignkit.data.group import Group
from alignkit.errors import BadRow, DataError, refuse
from alignkit.host.plugins import plugins
from alignkit.io.atomic import whole_file
from alignkit.io.digest import commit_of
from alignkit.recipe.sources import DataSpec, SourceReader
from alignkit_plugins.formats.layouts import LAYOUTS


@dataclass(frozen=True)
class Row:
    """A row of a file. number: from 1. raw: as parsed; None if it cannot be. bad: why not read."""

    file: str
    number: int
    raw: Any
    groups: Sequence[Group] = ()
    bad: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


def no_stage(name: str) -> Path:
    """Refuse the data of a stage, which do not exist yet."""
    raise DataError(f"stage '{name}': only the rows of files can be looked at")


def read_rows(spec: DataSpec, notes: list[str] | None = None) -> list[Row]:
    """All rows, up to the limit of each source, and in its part. Raises DataError if a source has no
    good one.

    notes: gets what formats decided about all rows.
    """
    rows: list[Row] = []
    for place, source in enumerate(spec.sources):
        formats, commit = plugins().usable("format"), partial(commit_of, "dataset")
        reader = SourceReader(source, formats, no_stage, commit, place)
        name, before = short(source.name), len(rows)
        for row in reader.rows_of_part():
            raw = None if isinstance(row.raw, BadRow) else row.raw
            rows.append(Row(name, row.number, raw, tuple(row.groups), str(row.bad or "")))
        if notes is not None and reader.format:
            notes += reader.format.notes
        if len(rows) - before == len(reader.bad):
            why = "it has no row to read"
            if reader.bad:
                why = f"no usable row; no row can be read; for example {reader.bad[0]}"
            raise DataError(f"{source.name}: {why}")
    return rows


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """The groups of all rows."""
    return [*chain.from_iterable(row.groups for row in rows)]


def name_of(spec: DataSpec) -> str:
    """The files of a data entry, in a word."""
    return ", ".join(short(source.name) for source in spec.sources)


def short(name: str) -> str:
    """A path from the current folder, if it is below it; any other name."""
    return name.removeprefix(f"{Path.cwd()}/")


# Writing


def convert(spec: DataSpec, name: str, out: Path) -> list[str]:
    """Write rows in a layout of LAYOUTS, with their tools. Returns in lines how many were
    written, how many not and why, and what the layout has no place for. Raises DataError if none
    fits.
    """
    check_target(out, spec)
    notes = list[str]()
    layout, rows = LAYOUTS[name], read_rows(spec, notes)
    written: list[Any] = []
    without: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for row in rows:
        before, left_out = len(written), set[str]()
        for group in row.groups:
            if made := layout.written(group):
                written += made
                left_out |= layout.lost(group, made)
        lost.update(left_out)
        if len(written) == before and (row.groups or row.bad):
            without["they cannot be read" if row.bad else layout.lack] += 1
    if not written:
        raise DataError(f"{name_of(spec)}: no row can be written as {name}: {', '.join(without)}")
    write_rows(out, written)
    lines = [f"{out}: {len(written):,} row{'s' * (len(written) > 1)} from {len(rows):,}", *notes]
    lines += [f"rows not written: {count:,} ({reason})" for reason, count in without.items()]
    for name, count in sorted(lost.items()):
        lines.append(f"rows without their '{name}': {count:,}")
    bad = skips([f"{row}: {row.bad}" for row in rows if row.bad])
    return [*lines, bad] if bad else lines


def check_target(out: Path, spec: DataSpec) -> None:
    """Raise RecipeError for a file that is not JSON lines, or that the rows come from."""
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        refuse(f"--out {out}: JSON lines are written", f"name it {out.with_suffix('.jsonl').name}")
    for source in spec.sources:
        for file in (out, removed_file(out)):
            if source.path is not None and file.exists() and file.samefile(source.path):
                refuse(
                    f"--out {out}: is what the rows come from, which is never changed",
                    "name another file",
                )


def removed_file(out: Path) -> Path:
    """The file next to a cleaned one that says what was left out."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.removed.jsonl")


def json_lines(rows: Iterable[Any]) -> str:
    """Rows as lines of JSON."""
    lines = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, default=str)
        # Halves of characters, which UTF-8 cannot encode, are escaped as JSON does it
        lines.append(line.encode("utf-8", "backslashreplace").decode())
    return "\n".join([*lines, ""])


def write_rows(out: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, compressed if the file is called so; the same rows give the same bytes."""
    written = json_lines(rows).encode()
    with whole_file(out) as file:
        file.write(gzip.compress(written, mtime=0) if out.suffix == ".gz" else written)
