"""Files of JSON and of text as numbered rows: jsonl, json and txt, each also .gz. Readers are
plugins for all others.

Rows are numbered from 1: lines of jsonl and txt, elements of a json array. JSON lines in a file
called .json are read as lines. A row that cannot be parsed becomes a `BadRow` and does not end the
file, so that all faults can be reported together as `file:row: reason`.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import BadRow, DataError
from alignkit.io.text import NO_FILE, is_special, listed

MAX_LISTED = 20  # bad rows listed in an error; the rest are counted
RECODE = (
    "save the file as UTF-8, as with `iconv -f CP1252 -t UTF-8 FILE > NEW` for the encoding CP1252"
)
UNDECODED = re.compile("[\udc80-\udcff]")  # what `text_lines` makes of bytes that are not UTF-8

NumberedRows = Iterator[tuple[int, Any]]  # each with its line, or its place in the file


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be used. `row` counts from 1. left_out: the recipe does not want it."""

    file: str
    row: int
    reason: str
    left_out: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


def bad_rows_error(bad: Sequence[object]) -> DataError:
    """The error that lists the first MAX_LISTED bad rows, and counts the others."""
    lines = [f"{len(bad)} bad row{'s' * (len(bad) > 1)}:"]
    lines += [f"  {row}" for row in bad[:MAX_LISTED]]
    if bad[MAX_LISTED:]:
        lines.append(f"  ... and {len(bad) - MAX_LISTED} more")
    return DataError("\n".join(lines))


def skips(bad: Sequence[object]) -> str:
    """What is said of bad rows that are skipped; nothing if there are none."""
    if not bad:
        return ""
    return f"bad rows skipped: {len(bad)}, the first: {bad[0]}"


def left_out(rows: Iterable[SkippedRow]) -> str:
    """What is said of the rows among these that the recipe does not want; nothing without any."""
    reasons = dict[str, list[str]]()
    for row in rows:
        if row.left_out:
            reasons.setdefault(row.reason, []).append(str(row.row))
    words = [f"{reason} ({len(at)}: row {listed(at)})" for reason, at in reasons.items()]
    if not words:
        return ""
    return f"left out: {', '.join(words)}"


def raise_if_bad(row: Any) -> Any:
    """Return a row that was parsed; raise one that is a `BadRow`."""
    if isinstance(row, BadRow):
        raise row
    return row


_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages: "a number", "a list"."""
    return _KINDS.get(type(value), type(value).__name__)


def suffix_of(path: Path) -> str:
    """A file's last suffix in lower case, or the one before `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, without a byte order mark.

    Bytes that are not UTF-8 become surrogates, which `parse` refuses. Raises `DataError` that names
    the line at which a damaged file ends, and for a file in another encoding: without it, rows in
    languages that ASCII cannot write would be skipped as a few bad ones.
    """
    number, valid, foreign = 0, 0, 0
    if is_special(path):
        raise DataError(f"{path}: {NO_FILE}")
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{path}: UTF-16; {RECODE.replace('CP1252', 'UTF-16')}")
                text = line.decode(errors="surrogateescape").removeprefix("\ufeff" * (number == 1))
                if not text.isascii():
                    is_foreign = UNDECODED.search(text) is not None
                    valid, foreign = valid + (not is_foreign), foreign + is_foreign
                    if foreign > max(1, valid):
                        what = f"not UTF-8, as {foreign} of its lines that are not plain ASCII"
                        raise DataError(f"{path}:{number}: {what}; {RECODE}")
                yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1}: the gzip file is damaged or truncated: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error


def jsonl_rows(path: Path) -> NumberedRows:
    """The numbered rows of a file of JSON lines; one that cannot be parsed is a `BadRow`."""
    for number, line in text_lines(path):
        if line.strip():
            yield number, _parsed_line(line)


def _parsed_line(line: str) -> Any:
    try:
        return parse(line)
    except BadRow as error:
        return error


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large, or not a JSON number")
    return value


class Twice(BadRow):
    """An object of JSON has a key twice, of which only one would count."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise Twice(f"has the key '{max(names, key=names.count)}' twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object)


def parse(line: str | bytes) -> Any:
    """The value of a text of JSON. Raises `BadRow` if it is not valid."""
    text = line if isinstance(line, str) else line.decode(errors="surrogateescape")
    if not text.isascii() and (fault := UNDECODED.search(text)):
        raise BadRow(f"not valid UTF-8 at character {fault.start() + 1} of the line; {RECODE}")
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not valid JSON: {error}") from error


def json_rows(path: Path) -> NumberedRows:
    """The rows of a JSON file: the elements of an array, one object, or an object per line, as in a
    .jsonl file.
    """
    lines = [line for _, line in text_lines(path)]
    text = "".join(lines)
    if not text.strip():
        return
    try:
        value = parse(text)
    except BadRow as error:
        if isinstance(error, Twice) and text.lstrip().startswith("["):
            yield from enumerate(_elements(path, text.strip()), 1)
            return
        if not any(isinstance(_parsed_line(line), dict) for line in lines[:MAX_LISTED]):
            raise DataError(f"{path}: {error}") from error
        yield from jsonl_rows(path)
        return
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _elements(path: Path, text: str) -> Iterator[Any]:
    """The elements of an array, each a row of its own, as some are bad."""
    at = 1
    try:
        while text[at] != "]" or text[at + 1 :]:
            end = at + 1
            if text[at] not in ", \t\r\n":
                _, end = json.JSONDecoder().raw_decode(text, at)
                yield _parsed_line(text[at:end])
            at = end
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def without_fills(row: Any, table: bool = True) -> Any:
    """The row without the nulls that tables fill in: every struct of a column has the keys of all
    its others.

    Nulls in lists stay, and so does JSON in a text, which a person wrote. Rows that alignkit wrote
    are returned as they are. A row's columns may be null: only what is inside of them changes.
    table: false of JSON, whose calls and schemas keep their nulls, unless a table was written as
    JSON: its schemas have nulls where none can be.
    """
    if not isinstance(row, dict) or "alignkit" in row:
        return row
    schemas = dict(_schemas(row))
    tools = schemas if table or any(map(_filled, schemas.values())) else None
    return {name: _dense(inner, tools) for name, inner in row.items()}


def _schemas(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the parameters of each tool inside of a value."""
    if isinstance(value, dict):
        parameters = value.get("parameters")
        if isinstance(parameters, dict) and "properties" in parameters:
            yield str(value.get("name")), parameters
        value = [*value.values()]
    for inner in value if isinstance(value, list) else ():
        yield from _schemas(inner)


def _filled(schema: Any) -> bool:
    """Whether a schema has a null other than a value that it allows."""
    if isinstance(schema, dict):
        inner = [value for key, value in schema.items() if key not in ("default", "const")]
        return None in inner or any(map(_filled, inner))
    return isinstance(schema, list) and any(map(_filled, schema))


def _dense(
    value: Any, tools: Mapping[str, dict[str, Any]] | None, needed: Sequence[str] = ()
) -> Any:
    """The value without nulls. tools: see `_schemas`; None: calls and schemas stay as they are.
    needed: keys that may be null.
    """
    if isinstance(value, list):
        return [_dense(inner, tools) for inner in value]
    if not isinstance(value, dict):
        return value
    dense = {}
    for key, inner in value.items():
        if key in ("arguments", "parameters") and isinstance(inner, dict):
            required = tools and tools.get(str(value.get("name")), {}).get("required")
            dense[key] = inner if tools is None else _dense(inner, tools, required or ())
        elif inner is not None or key in needed:
            dense[key] = _dense(inner, tools)
    return dense
