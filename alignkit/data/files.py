"""Files cut into rows: jsonl, json, csv, tsv, txt (each also .gz), and parquet and hub data sets through `datasets`.

A row is numbered from 1: the line in jsonl and txt, the element of a json array, the record of parquet and hub data,
and in csv and tsv the row a spreadsheet shows (the header is row 1). A row that cannot be parsed does not end the
file: a `BadRow` stands in its place, and every fault is reported as `file:row: reason`.
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
from pathlib import Path
from typing import Any

from alignkit.errors import BadRow, DataError

SHOWN = 20  # bad rows listed in an error; the rest are counted


@dataclass(frozen=True)
class SkippedRow:
    """A row that could not be used. `row` counts from 1; 0 where the file as a whole is meant."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


def bad_rows(bad: Sequence[SkippedRow]) -> DataError:
    """The error that lists them, the first `SHOWN` by name."""
    rows = "row" if len(bad) == 1 else "rows"
    lines = [f"{len(bad)} {rows} cannot be used:", *(f"  {row}" for row in bad[:SHOWN])]
    if len(bad) > SHOWN:
        lines.append(f"  ... and {len(bad) - SHOWN} more")
    return DataError("\n".join(lines))


def raised(row: Any) -> Any:
    """A fault found while a file was cut into rows travels as a value, so that the rows after it are still read."""
    if isinstance(row, BadRow):
        raise row
    return row


_KINDS = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """What JSON calls a value's type."""
    return _KINDS.get(type(value), type(value).__name__)


def suffix_of(path: Path) -> str:
    """The kind of a file: its last suffix, or the one before `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file; a `BadRow` stands in the place of one that cannot be parsed."""
    suffix = suffix_of(path)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return dataset_rows("parquet", data_files=str(path), split="train")
    raise DataError(f"{path}: cannot read this kind of file; known are jsonl, json, csv, tsv, txt (also .gz), parquet")


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes | BadRow]]:
    """Numbered lines as they are on the disk, without a byte order mark; damage in a gzip file is the last line."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, BadRow(f"the gzip file is damaged or cut off: {error}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def text_lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines as text, without their ends (LF or CRLF)."""
    for number, line in _byte_lines(path):
        yield number, line if isinstance(line, BadRow) else _decoded(line)


def _decoded(line: bytes) -> str | BadRow:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return BadRow(f"not valid UTF-8 at byte {error.start + 1} of the line")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _byte_lines(path):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _attempt(line)


def _attempt(line: bytes) -> Any:
    """The value of a line, or the `BadRow` that says why it has none."""
    try:
        return parse(line)
    except BadRow as error:
        whole = line.endswith(b"\n")
        return error if whole else BadRow(f"{error}; the line has no end: the file may have been cut off")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_float)


def parse(line: str | bytes) -> Any:
    """The value of a line of JSON; raises `BadRow`."""
    text = line if isinstance(line, str) else raised(_decoded(line))
    if "\0" in text:
        raise BadRow("has a NUL byte")
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        line_number = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadRow(f"not valid JSON: {error.msg} at {line_number}column {error.colno}") from error
    except ValueError as error:
        raise BadRow(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise BadRow("nested too deeply") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a JSON file: the elements of an array, or one object.

    An object whose only key holds a list of texts is that list. A fault ends the file, but the rows before it count.
    """
    lines = [line for _, line in text_lines(path)]
    bad = next(((number, line) for number, line in enumerate(lines, 1) if isinstance(line, BadRow)), None)
    if bad:
        raise DataError(f"{path}:{bad[0]}: {bad[1]}")
    text = "\n".join(map(str, lines)).strip()
    if text.startswith("["):
        yield from enumerate(_elements(text), 1)
    elif text:
        yield from enumerate(_listed(_attempt(text.encode() + b"\n")), 1)


def _listed(value: Any) -> list[Any]:
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    return inner if isinstance(inner, list) and all(isinstance(item, str) for item in inner) else [value]


def _elements(text: str) -> Iterator[Any]:
    """Elements of a JSON array one by one, so that a fault costs only what comes after it."""
    position = _after_space(text, 1)
    if text[position : position + 1] == "]":
        return
    while True:
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield BadRow(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
            return
        except ValueError as error:
            yield BadRow(f"not valid JSON: {error}")
            return
        except RecursionError:
            yield BadRow("nested too deeply")
            return
        yield value
        position = _after_space(text, position)
        separator = text[position : position + 1]
        position = _after_space(text, position + 1)
        if separator != ",":
            break
    if separator != "]" or position < len(text):
        yield BadRow("the array is cut off or followed by something else")


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Rows of a csv or tsv file as objects; the header is row 1, and quoted cells may hold line ends."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
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
            yield number, BadRow(f"not a valid row of a table: {error}")
            continue
        if not header:
            header = _header(path, cells)
        elif any(cells):  # spreadsheets leave empty rows behind
            yield number, _record(header, cells)
    yield from ((number, fault) for fault in damage)


def _table_lines(path: Path, damage: list[BadRow]) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become surrogates, which `_record` finds again."""
    for _, line in _byte_lines(path):
        if isinstance(line, BadRow):
            damage.append(line)
        else:
            yield line.decode(errors="surrogateescape")


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names) or len(set(names)) < len(names):
        raise DataError(f"{path}:1: the header must name each column once: {', '.join(cells)}")
    return names


def _record(header: Sequence[str], cells: Sequence[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"has {len(cells)} cells, but the header has {len(header)}")
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return BadRow("not valid UTF-8")
    return dict(zip(header, cells, strict=True))


def dataset_rows(name: str, **where: Any) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file or hub data set; `datasets` keeps them mapped from the disk."""
    datasets = importlib.import_module("datasets")  # seconds to import, so only when it is needed
    try:
        rows = datasets.load_dataset(name, **where)
    except Exception as error:  # whatever the network, the hub or Arrow raise
        place = where.get("data_files", name)
        raise DataError(f"{place}: cannot be loaded through `datasets`: {type(error).__name__}: {error}") from error
    for number, row in enumerate(rows, 1):
        yield number, _without_nan(row)


def _without_nan(value: Any) -> Any:
    """Tables mark missing numbers by NaN, JSON by null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
