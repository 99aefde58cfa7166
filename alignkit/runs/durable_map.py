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


@dataclass(frozen=True)
class Chunk:
    """Rows that the function sees together. key: a hash of the place of the first and of the rows."""

    rows: Sequence[Any]
    key: str


def durable_map(
    path: Path,
    rows: Sequence[Any],
    function: Callable[[Sequence[Any]], Iterable[Any]],
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
    elsewhere: Callable[[Iterable[Sequence[Any]]], Iterator[Iterable[Any]]] | None = None,
) -> list[Any]:
    """The function's results over rows, computed in chunks and stored in `path` by a hash of the chunk.

    Results must be JSON, one per row. Raises ValueError for another number of them.
    should_stop: called before each chunk; may raise. done: is given the number of rows so far. elsewhere: computes the
    results of chunks, in order; None: the function does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = stored_results(path)
    every = list(chunks(rows))
    known = frozenset(stored)
    missing = (chunk.rows for chunk in every if chunk.key not in known)
    computed = iter(elsewhere(missing) if elsewhere is not None else map(function, missing))
    results: list[Any] = []
    with path.open("a", encoding="utf-8") as file:
        for chunk in every:
            should_stop()
            if chunk.key not in stored:
                # To JSON and back, so that a fresh result equals a stored one.
                found = json.loads(json.dumps(list(next(computed))))
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


def chunks(rows: Sequence[Any]) -> Iterator[Chunk]:
    """The rows in chunks."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        yield Chunk(chunk, digest([start, _plain(chunk)]))


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
