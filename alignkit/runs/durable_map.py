"""Map a function over rows so that a killed run does not compute, or pay for, a result twice."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.io.digest import digest

CHUNK = 16  # rows
BLOCKS = "block-*.jsonl"  # in the folder of a map that an executor carries out


@dataclass(frozen=True)
class Chunk:
    """Rows that the function sees together. start: the place of the first. key: a hash of the place and the rows."""

    start: int
    rows: Sequence[Any]
    key: str


def durable_map(
    path: Path,
    rows: Sequence[Any],
    function: Callable[[Sequence[Any]], Iterable[Any]],
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
    *,
    size: int = CHUNK,
    first: int = 0,
) -> list[Any]:
    """The function's results over rows, computed in chunks and stored in `path` by a hash of the chunk.

    Results must be JSON, one per row. Raises ValueError for another number of them.
    should_stop: called before each chunk; may raise. done: is given the number of rows so far. size: rows in a chunk.
    first: the place of the first row, if these are a part of more rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = known_results(path)
    results: list[Any] = []
    with path.open("a", encoding="utf-8") as file:
        for chunk in chunks(rows, size, first):
            should_stop()
            if chunk.key not in stored:
                # To JSON and back, so that a fresh result equals a stored one.
                found = json.loads(json.dumps(list(function(chunk.rows))))
                if len(found) != len(chunk.rows):
                    raise ValueError(
                        f"the function must return a result per row: {len(chunk.rows)} rows, {len(found)} results"
                    )
                stored[chunk.key] = found
                record = {"key": chunk.key, "results": found}
                file.write("\n" + json.dumps({**record, "check": digest(record)}))
                file.flush()
                os.fsync(file.fileno())
            results += stored[chunk.key]
            done(len(results))
    return results


def chunks(rows: Sequence[Any], size: int = CHUNK, first: int = 0) -> Iterator[Chunk]:
    """The rows in chunks. first: the place of the first row."""
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield Chunk(first + start, chunk, digest([first + start, _plain(chunk)]))


def known_results(path: Path) -> dict[str, list[Any]]:
    """The results of each chunk of a map, by its key: those that this process stored, and those of workers."""
    stored = stored_results(path)
    for part in sorted(path.with_suffix("").glob(BLOCKS)):
        stored |= stored_results(part)
    return stored


def stored_results(path: Path) -> dict[str, list[Any]]:
    """The results of each chunk in a file, by its key."""
    stored = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        # A killed run may leave an incomplete last line, and a disk may change any. Such chunks are computed again.
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            record = json.loads(line)
            if record.pop("check") == digest(record):
                stored[record["key"]] = record["results"]
    return stored


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
