"""Map a function over rows so that a killed run does not compute, or pay for, a result twice."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit.io.digest import digest

CHUNK = 16  # rows


def durable_map(
    path: Path,
    rows: Sequence[Any],
    function: Callable[[Sequence[Any]], Iterable[Any]],
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
) -> list[Any]:
    """The function's results over rows, computed in chunks and stored in `path` by a hash of the chunk.

    Results must be JSON, one per row. Raises ValueError for another number of them.
    should_stop: called before each chunk; may raise. done: is given the number of rows so far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _stored(path)
    results: list[Any] = []
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(rows), CHUNK):
            should_stop()
            chunk = rows[start : start + CHUNK]
            key = digest([start, _plain(chunk)])
            if key not in stored:
                # To JSON and back, so that a fresh result equals a stored one.
                found = json.loads(json.dumps(list(function(chunk))))
                if len(found) != len(chunk):
                    raise ValueError(
                        f"the function must return a result per row: {len(chunk)} rows, {len(found)} results"
                    )
                stored[key] = found
                record = {"key": key, "results": stored[key]}
                file.write("\n" + json.dumps({**record, "check": digest(record)}))
                file.flush()
                os.fsync(file.fileno())
            results += stored[key]
            done(len(results))
    return results


def _stored(path: Path) -> dict[str, list[Any]]:
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
