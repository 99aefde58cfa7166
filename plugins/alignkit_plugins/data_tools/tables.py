"""Readers of tables: csv and tsv (each also .gz), parquet, and data sets of the hub, which
`datasets` reads.

Rows of csv and tsv are numbered as a spreadsheet shows them: the header is row 1. Those of the
others count from 1.
"""

from __future__ import annotations

import csv
import importlib
import logging
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from itertools import chain, count
from pathlib import Path
from typing import Any
from uuid import UUID

from alignkit import BadRow, DataError, Reader
from alignkit.data.files import RECODE, UNDECODED, NumberedRows, text_lines
from alignkit.io.digest import folder_digest
from alignkit.io.text import NO_FILE, cache_folder, is_special
from alignkit.recipe.sources import CommitOf, DataSource

SEPARATOR = re.compile(r"^sep=(.)\s*$", re.IGNORECASE)  # a first line that Excel does not count
PARQUET_ROWS = 1024  # decoded together


class Csv(Reader):
    """Rows as objects; quoted cells may contain line ends.

    usual: what separates the columns, unless the header has only one of a few others.
    """

    usual = ","

    def rows(self, path: Path) -> NumberedRows:
        csv.field_size_limit(2**31 - 1)  # the default limit is 128 KiB
        lines = (line for _, line in text_lines(path))
        first = next(lines, "")
        marks = SEPARATOR.findall(first)
        if marks:
            first = next(lines, "")
        if not first:
            return
        marks = marks or [mark for mark in ",;\t|" if mark in first]
        delimiter = marks[0] if len(marks) == 1 else self.usual
        records = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        header: list[str] = []
        for number in count(1):
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, BadRow(f"not a valid table row: {error}")
                continue
            if not header:
                header = _header(path, cells)
            elif any(cells):  # spreadsheets leave empty rows behind
                yield number, _record(header, cells, delimiter)


class Tsv(Csv):
    """The same with tabs."""

    usual = "\t"


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if UNDECODED.search("".join(names)):
        raise DataError(f"{path}:1: not valid UTF-8; {RECODE}")
    if not any(names) or len(set(names)) < len(names):
        raise DataError(
            f"{path}:1: every column in the header needs a different name, got: {', '.join(cells)}"
        )
    return names


def _record(header: Sequence[str], cells: Sequence[str], mark: str) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(
            f"the row has {len(cells)} cell{'s' * (len(cells) != 1)}, but the header has "
            f"{len(header)}"
        )
    if UNDECODED.search("".join(cells)):
        return BadRow(f"not valid UTF-8; {RECODE}")
    if mark == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
        return BadRow(
            "a quotation mark at the beginning of a cell joins it with the next rows; write the "
            "file as csv or jsonl, or double the mark and quote the cell"
        )
    return dict(zip(header, cells, strict=True))


class Parquet(Reader):
    """Records of a file, read from the file itself: the cache of `datasets` would miss a change."""

    def rows(self, path: Path) -> NumberedRows:
        parquet = importlib.import_module("pyarrow.parquet")  # takes a second, so only when needed
        if is_special(path):
            raise DataError(f"{path}: {NO_FILE}")
        try:
            with parquet.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=PARQUET_ROWS)
                rows = chain.from_iterable(batch.to_pylist() for batch in batches)
                for number, row in enumerate(rows, 1):
                    yield number, json_value(row)
        except FileNotFoundError as error:
            raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error
        except Exception as error:  # Arrow raises many kinds
            raise DataError(
                f"{path}: cannot read the parquet file: {type(error).__name__}: {error}"
            ) from error


class Hub(Reader):
    """A part of a data set on the hub, or of a local folder in the layout of one."""

    def rows_of(self, source: DataSource, commit: CommitOf) -> NumberedRows:
        datasets = importlib.import_module("datasets")  # takes seconds, so only when needed
        # A README without a card is no fault
        logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
        name = str(source.hub)
        part: dict[str, Any] = {"name": source.config, "data_files": source.data_files}
        if not Path(name).is_dir():
            part["revision"] = commit(name, source.revision)
        elif source.revision is not None:
            raise DataError(f"{name}: a folder has no 'revision'; remove it")
        else:
            # `datasets` knows a prepared file by its time of change; this knows it by its content.
            part["cache_dir"] = str(cache_folder() / "datasets" / folder_digest(Path(name)))
        part = {key: value for key, value in part.items() if value is not None}
        try:
            for number, row in enumerate(
                datasets.load_dataset(name, split=source.split or "train", **part), 1
            ):
                yield number, json_value(row)
        except Exception as error:  # the network, the hub and Arrow raise many kinds
            raise DataError(
                f"{source.name}: `datasets` cannot load it: {type(error).__name__}: {error}"
            ) from error


def json_value(value: Any) -> Any:
    """A value of a table as JSON data.

    NaN, which marks a missing number in tables, becomes None. What is neither text nor a number,
    such as a picture, becomes an object that names its type, so that nobody takes it for text or
    for nothing.
    """
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(json_value, value))
    if isinstance(value, float | Decimal):
        return None if math.isnan(value) else float(value)
    if isinstance(value, timedelta | UUID):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes) and b"\0" not in value:
        with suppress(UnicodeDecodeError):
            return value.decode()
    return {"unread": type(value).__name__}
