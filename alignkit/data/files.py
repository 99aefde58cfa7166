"""Files as numbered rows: jsonl, json, csv, tsv, txt (each also .gz), and parquet.

Rows are numbered from 1: lines of jsonl and txt, elements of a json array, records of parquet, and the rows that a
spreadsheet shows for csv and tsv (the header is row 1). JSON lines in a file called .json are read as lines. A row that
cannot be parsed becomes a `BadRow` and does not end the file, so that all faults can be reported together as
`file:row: reason`.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from alignkit.errors import BadRow, Cut, DataError
from alignkit.io.lookup import NO_FILE, is_special

MAX_LISTED = 20  # bad rows listed in an error; the rest are counted
PARQUET_ROWS = 1024  # decoded together
MAX_LINE = 2**25  # bytes of a line: a row's, with room for a book
MAX_JSON = 2**30  # bytes of a line in a .json file, which may hold all rows
RECODE = "save the file as UTF-8, as with `iconv -f CP1252 -t UTF-8 FILE > NEW` for the encoding CP1252"


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be used. `row` counts from 1. left_out: the recipe does not want it."""

    file: str
    row: int
    reason: str
    left_out: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


def bad_rows_error(bad: Sequence[SkippedRow]) -> DataError:
    """The error that lists bad rows, those with the same reason together, and counts what is over MAX_LISTED."""
    rows = "row" if len(bad) == 1 else "rows"
    alike: dict[tuple[str, str], list[SkippedRow]] = {}
    for row in bad:
        alike.setdefault((row.file, row.reason), []).append(row)
    lines = [f"{len(bad)} bad {rows}:"]
    for same in [*alike.values()][:MAX_LISTED]:
        lines.append(f"  {same[0]}" + (f" ({_more(same)})" if len(same) > 1 else ""))
    if len(alike) > MAX_LISTED:
        more = sum(map(len, [*alike.values()][MAX_LISTED:]))
        lines.append(f"  ... and {more} more")
    return DataError("\n".join(lines))


def _more(rows: Sequence[SkippedRow]) -> str:
    """`also rows 3, 4, 5 and 12 more`."""
    others = [str(row.row) for row in rows[1:]]
    if len(others) <= 4:
        return f"also row{'s' * (len(others) > 1)} {', '.join(others)}"
    return f"also rows {', '.join(others[:3])} and {len(others) - 3} more"


def raise_if_bad(row: Any) -> Any:
    """Return a row that was parsed; raise one that is a `BadRow`."""
    if isinstance(row, BadRow):
        raise row
    return row


_KINDS = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages: "a number", "a list"."""
    return _KINDS.get(type(value), type(value).__name__)


def suffix_of(path: Path) -> str:
    """A file's last suffix in lower case, or the one before `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file; a row that cannot be parsed is a `BadRow`.

    Raises `DataError` for a file of an unknown kind, or one that cannot be read at all.
    """
    suffix = suffix_of(path)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, _delimiter(path, "," if suffix == ".csv" else "\t"))
    if suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(
        f"{path}: unknown file type '{suffix}'; use .jsonl, .json, .csv, .tsv or .txt (each also .gz), or .parquet"
    )


def _byte_lines(path: Path, longest: int = MAX_LINE) -> Iterator[tuple[int, bytes | BadRow]]:
    """Numbered lines without a byte order mark; a damaged gzip file ends with a `BadRow`, and so does a huge line."""
    number = 0
    if is_special(path):
        raise DataError(f"{path}: {NO_FILE}")
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(longest + 1), b""), 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path}: the file is UTF-16; {RECODE.replace('CP1252', 'UTF-16')}")
                if len(line) > longest:
                    yield number, Cut(f"the line has more than {longest >> 20} MiB, so nothing is read from it on")
                    return
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, Cut(f"the gzip file is damaged or truncated: {error}")
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error


def text_lines(path: Path, longest: int = MAX_LINE) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines as text, without line ends (LF or CRLF). longest: bytes of a line."""
    for number, line in _byte_lines(path, longest):
        yield number, line if isinstance(line, BadRow) else _decoded(line)


def _decoded(line: bytes) -> str | BadRow:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return BadRow(f"not valid UTF-8 at byte {error.start + 1} of the line; {RECODE}")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _byte_lines(path):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _parse_or_bad(line)


def _parse_or_bad(line: bytes) -> Any:
    """The value of a line of JSON, or a `BadRow`."""
    try:
        return parse(line)
    except BadRow as error:
        complete = line.endswith(b"\n")
        return error if complete else BadRow(f"{error}; the line has no line end: the file may be truncated")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_float)


def parse(line: str | bytes) -> Any:
    """The value of a line of JSON. Raises `BadRow` if it is not valid."""
    text = line if isinstance(line, str) else raise_if_bad(_decoded(line))
    if "\0" in text:
        raise BadRow("the row contains a NUL byte")
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        line_number = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadRow(f"not valid JSON: {error.msg} at {line_number}column {error.colno}") from error
    except ValueError as error:
        raise BadRow(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise BadRow("the JSON is nested too deeply") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a JSON file: the elements of an array, one object, or an object per line, as in a .jsonl file.

    An object whose only key holds a list of texts is read as that list. A fault in an array ends the file, not the
    rows before it.
    """
    lines = [line for _, line in text_lines(path, MAX_JSON)]
    bad = next(((number, line) for number, line in enumerate(lines, 1) if isinstance(line, BadRow)), None)
    if bad:
        raise DataError(f"{path}:{bad[0]}: {bad[1]}")
    text = "\n".join(map(str, lines)).strip()
    if text.startswith("["):
        yield from enumerate(_elements(text), 1)
        return
    value = _parse_or_bad(text.encode() + b"\n") if text else None
    if isinstance(value, BadRow) and any(_is_object(str(line)) for line in lines[:MAX_LISTED]):
        yield from _jsonl_rows(path)
    elif text:
        yield from enumerate(_rows_of_object(value), 1)


def _is_object(line: str) -> bool:
    return line.lstrip().startswith("{") and isinstance(_parse_or_bad(line.encode()), dict)


def _rows_of_object(value: Any) -> list[Any]:
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    return inner if isinstance(inner, list) and all(isinstance(item, str) for item in inner) else [value]


def _elements(text: str) -> Iterator[Any]:
    """Elements of a JSON array, parsed one by one, so that a fault costs only the elements after it."""
    position = _after_space(text, 1)
    if text[position : position + 1] == "]":
        return
    while True:
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield Cut(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
            return
        except ValueError as error:
            yield Cut(f"not valid JSON: {error}")
            return
        except RecursionError:
            yield Cut("the JSON is nested too deeply")
            return
        yield value
        position = _after_space(text, position)
        separator = text[position : position + 1]
        position = _after_space(text, position + 1)
        if separator != ",":
            break
    if separator != "]" or position < len(text):
        yield Cut("the array is truncated or followed by other text")


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _delimiter(path: Path, usual: str) -> str:
    """What separates the columns: the usual character, or the only one of a few others that the header has."""
    header = next((line.decode(errors="replace") for _, line in _byte_lines(path) if isinstance(line, bytes)), "")
    others = [mark for mark in ",;\t|" if mark in header]
    return others[0] if len(others) == 1 else usual


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Rows of a csv or tsv file as objects; the header is row 1, and quoted cells may contain line ends."""
    csv.field_size_limit(2**31 - 1)  # the default limit is 128 KiB
    damage: list[BadRow] = []
    records = csv.reader(_table_lines(path, damage), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    while True:
        number += 1
        try:
            cells = next(records)
        except StopIteration:
            break
        except csv.Error as error:
            yield number, BadRow(f"not a valid table row: {error}")
            continue
        if not header:
            header = _header(path, cells)
        elif any(cells):  # spreadsheets leave empty rows behind
            yield number, _record(header, cells)
    yield from ((number, fault) for fault in damage)


def _table_lines(path: Path, damage: list[BadRow]) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become surrogates, which `_record` detects."""
    for _, line in _byte_lines(path):
        if isinstance(line, BadRow):
            damage.append(line)
        else:
            yield line.decode(errors="surrogateescape")


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    if _undecoded(cells):
        raise DataError(f"{path}:1: not valid UTF-8; {RECODE}")
    names = [cell.strip() for cell in cells]
    if not any(names) or len(set(names)) < len(names):
        raise DataError(f"{path}:1: every column in the header needs a different name, got: {', '.join(cells)}")
    return names


def _undecoded(cells: Sequence[str]) -> bool:
    """Whether any cell has bytes that are not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for cell in cells for character in cell)


def _record(header: Sequence[str], cells: Sequence[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"the row has {len(cells)} cell{'s' * (len(cells) != 1)}, but the header has {len(header)}")
    if _undecoded(cells):
        return BadRow(f"not valid UTF-8; {RECODE}")
    return dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file, read from the file itself: the cache of `datasets` would miss a change."""
    parquet = importlib.import_module("pyarrow.parquet")  # takes a second, so only when needed
    number = 0
    if is_special(path):
        raise DataError(f"{path}: {NO_FILE}")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, json_value(row)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error
    except Exception as error:  # Arrow raises many kinds
        raise DataError(f"{path}: cannot read the parquet file: {type(error).__name__}: {error}") from error


def json_value(value: Any) -> Any:
    """A value of a table as JSON data.

    NaN, which marks a missing number in tables, becomes None. What is neither text nor a number, such as a picture,
    becomes an object that names its type, so that nobody takes it for text or for nothing.
    """
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float | Decimal):
        return None if math.isnan(value) else float(value)
    if isinstance(value, bytes):
        text = _decoded(value)
        return text if isinstance(text, str) and "\0" not in text else {"unread": "bytes"}
    if isinstance(value, timedelta | UUID):
        return str(value)
    return value.isoformat() if hasattr(value, "isoformat") else {"unread": type(value).__name__}


def without_fills(row: Any) -> Any:
    """The row without the nulls that tables fill in: every struct of a column has the keys of all its others.

    Nulls in lists stay, and so does JSON in a text, which a person wrote. Rows that alignkit wrote are returned as
    they are. A row's columns may be null: only what is inside of them changes.
    """
    if not isinstance(row, dict) or "alignkit" in row:
        return row
    return {name: _dense(inner) for name, inner in row.items()}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dense(inner) for key, inner in value.items() if inner is not None}
    return [_dense(inner) for inner in value] if isinstance(value, list) else value
