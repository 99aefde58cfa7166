"""A map over the rows of a step whose results a killed run does not compute, or pay for, twice."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from alignkit.io.digest import digest

CHUNK = 16  # rows that the function of a map sees together


def resumable_map(
    path: Path,
    rows: Sequence[Any],
    function: Callable[[Sequence[Any]], Iterable[Any]],
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
    elsewhere: Callable[[Iterable[Sequence[Any]]], Iterator[Iterable[Any]]] | None = None,
) -> list[Any]:
    """The function's results over rows, computed in chunks and stored in `path` by the place and the content of each.

    Results must be JSON, one per row. Raises ValueError for another number of them.
    should_stop: called before each chunk; may raise. done: is given the number of rows so far. elsewhere: computes the
    results of chunks, in order; None: the function does.
    """
    chunks = {digest([at, _plain(chunk := rows[at : at + CHUNK])]): chunk for at in range(0, len(rows), CHUNK)}
    store, stored = _opened(path)
    with closing(store):
        missing = [chunk for key, chunk in chunks.items() if key not in stored]
        computed = iter(elsewhere(missing) if elsewhere is not None else map(function, missing))
        mapped: list[Any] = []
        for key, chunk in chunks.items():
            should_stop()
            if key not in stored:
                fresh = list(next(computed))
                if len(fresh) != len(chunk):
                    text = f"the function must return a result per row: {len(chunk)} rows, {len(fresh)} results"
                    raise ValueError(text)
                stored[key] = results = json.dumps(fresh)
                with store:
                    store.execute("REPLACE INTO chunks VALUES (?, ?, ?)", (key, results, digest([key, results])))
            mapped += json.loads(stored[key])  # also of a fresh result, so that it equals a stored one
            done(len(mapped))
    return mapped


def _opened(path: Path) -> tuple[sqlite3.Connection, dict[str, str]]:
    """The store of a map, with the results of each chunk as JSON. A damaged one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock of the run's folder suffices; those of files do not work on every network drive.
    store = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True)
    try:
        if store.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError(f"{path} is damaged")
        store.execute("CREATE TABLE IF NOT EXISTS chunks (key TEXT PRIMARY KEY, results TEXT, sum TEXT)")
        rows = store.execute("SELECT key, results, sum FROM chunks").fetchall()
    except sqlite3.DatabaseError:
        store.close()
        path.unlink()
        return _opened(path)
    return store, {key: results for key, results, sum in rows if sum == digest([key, results])}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
