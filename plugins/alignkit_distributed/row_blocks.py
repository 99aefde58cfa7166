"""A map whose rows are carried out in blocks elsewhere: which blocks are missing, and what their workers found.

A chunk is what the function sees at once. It is as large as without an executor, so that every sum is over the same
rows and its bits are the same. A block is several chunks. Its worker stores each chunk in the block's own file as soon
as it is complete, and a restart finds the chunks of all files, whoever made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from alignkit import errors
from alignkit.errors import AlignkitError, RunFailed
from alignkit.io.digest import digest
from alignkit.runs.durable_map import Chunk, chunks, durable_map, known_results
from alignkit.runs.process import resource_error
from alignkit.stopping import Stopped

ROWS = "rows.jsonl"  # the rows of the missing blocks, a line each, while workers need them
STOP = "stop"  # its presence asks the workers to end
BEGUN = ".begun"  # a byte for each time that a block was begun, until it is finished

CarryOut = Callable[[Sequence[str], Callable[[], None]], Iterable[str]]


def map_in_blocks(
    path: Path,
    rows: Sequence[Any],
    carry_out: CarryOut,
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
    *,
    size: int,
    block_rows: int,
    retries: int = 3,
) -> list[Any]:
    """What `durable_map` returns of the same path and rows, found by workers.

    carry_out(blocks, stop): the replies to blocks, in any order. `stop` asks the workers to end.
    size: rows in a chunk. block_rows: rows in a block, rounded up to whole chunks. retries: times that a block is begun
    again after its worker died.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / STOP, *folder.glob(f"*{BEGUN}")):
        old.unlink(missing_ok=True)
    stored = known_results(path)
    results: list[Any] = [None] * len(rows)
    count = 0
    try:
        with (folder / ROWS).open("wb") as file:
            written = _Blocks(file, max(1, -(-block_rows // size)), retries)
            for chunk in chunks(rows, size):
                if chunk.key in stored:
                    results[chunk.start : chunk.start + len(chunk.rows)] = stored.pop(chunk.key)
                    count += len(chunk.rows)
                    written.end()
                else:
                    written.add(chunk)
            written.end()
        done(count)
        blocks = written.blocks
        replies = carry_out(blocks, lambda: (folder / STOP).touch()) if blocks else ()
        for start, found in _found(replies, blocks, should_stop):
            results[start : start + len(found)] = found
            done(count := count + len(found))
    finally:
        (folder / ROWS).unlink(missing_ok=True)
    return results


class _Blocks:
    """Writes the rows of missing chunks to a file, a line for each block. blocks: where a worker finds its rows.

    A block's chunks follow each other, and there are at most `most`. The rows of one block are in memory at a time.
    """

    def __init__(self, file: BinaryIO, most: int, retries: int):
        self._file, self._most, self._retries = file, most, retries
        self._chunks: list[Chunk] = []
        self.blocks: list[str] = []

    def add(self, chunk: Chunk) -> None:
        """Add the chunk that follows the last one."""
        self._chunks.append(chunk)
        if len(self._chunks) == self._most:
            self.end()

    def end(self) -> None:
        """End the block, if there is one."""
        if not self._chunks:
            return
        rows = [row for chunk in self._chunks for row in chunk.rows]
        key = digest([chunk.key for chunk in self._chunks])[:16]
        facts = {"start": self._chunks[0].start, "count": len(rows), "at": self._file.tell(), "key": key}
        self.blocks.append(json.dumps({**facts, "retries": self._retries}))
        self._file.write(json.dumps(rows).encode() + b"\n")
        self._chunks = []


def _found(
    replies: Iterable[str], blocks: Sequence[str], should_stop: Callable[[], None]
) -> Iterator[tuple[int, list[Any]]]:
    """The first row and the results of each block. Raises what the first failed block raised.

    A block may fail before an earlier one does. Earlier ones are waited for, so that the error is the one that a single
    process would meet.
    """
    waiting = {json.loads(block)["start"] for block in blocks}
    failed: tuple[int, AlignkitError] | None = None
    stopped: Stopped | None = None
    try:
        for reply in replies:
            plain = json.loads(reply)
            start = int(plain["start"])
            if start not in waiting:  # done twice: its first worker was thought to be dead
                continue
            waiting.remove(start)
            if (error := plain.get("error")) is None:
                yield start, plain["results"]
            elif error["kind"] == "Stopped":  # others may still store what is under way
                stopped = Stopped(error["text"])
            elif failed is None or start < failed[0]:
                failed = start, _raised(error)
            if failed is not None and min(waiting, default=failed[0]) >= failed[0]:
                raise failed[1]
    except RunFailed as error:
        if waiting and failed is None:
            error.add_note(f"row {min(waiting) + 1} and others are not finished")
        raise
    if failed is not None:
        raise failed[1]
    if stopped is not None:
        should_stop()  # says who asked for it
        raise stopped
    if waiting:
        raise RunFailed(f"the executor returned nothing for the block of row {min(waiting) + 1}")


def _raised(error: dict[str, str]) -> AlignkitError:
    """The error that a worker met."""
    known = {"AuthorError": "PluginError"}  # its text names the author already
    kind = getattr(errors, known.get(error["kind"], error["kind"]), RunFailed)
    plain = isinstance(kind, type) and issubclass(kind, AlignkitError) and kind is not errors.RecipeError
    return (kind if plain else RunFailed)(error["text"])


@dataclass(frozen=True)
class Block:
    """A block as a worker sees it. folder: of the map's files."""

    folder: Path
    start: int
    count: int
    at: int
    key: str
    retries: int

    def reply(self, function: Callable[[Sequence[Any]], Iterable[Any]], size: int, stop: Callable[[], None]) -> str:
        """Carry it out, and say what was found or what failed."""
        path = self.folder / f"block-{self.start:09}-{self.key}.jsonl"
        begun = path.with_suffix(BEGUN)
        try:
            self._begin(begun)
            found = durable_map(path, self._rows(), function, stop, size=size, first=self.start)
            begun.unlink(missing_ok=True)
        except Exception as raised:
            begun.unlink(missing_ok=True)
            return failure(self.start, raised)
        return json.dumps({"start": self.start, "results": found})

    def _begin(self, begun: Path) -> None:
        """Raise RunFailed if too many workers have died on this block."""
        with begun.open("ab") as file:
            file.write(b".")
            count = file.tell()
        if count > self.retries + 1:
            raise RunFailed(
                f"rows {self.start + 1} to {self.start + self.count}: {count - 1} workers died on them, one after "
                "another\nhelp: a worker that dies each time is often out of memory: use fewer workers, smaller models "
                "or a smaller block_rows; finished rows are kept, and the same command continues"
            )

    def _rows(self) -> list[Any]:
        with (self.folder / ROWS).open("rb") as file:
            file.seek(self.at)
            rows: list[Any] = json.loads(file.readline())
        if len(rows) != self.count:
            raise RunFailed(f"{self.folder / ROWS} does not hold the rows from {self.start + 1} on")
        return rows


def failure(start: int, raised: Exception) -> str:
    """What a worker says of a block that failed."""
    error = resource_error(raised) or raised
    ours = isinstance(error, AlignkitError)
    text = str(error) if ours else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return json.dumps({"start": start, "error": {"kind": type(error).__name__ if ours else "", "text": text}})
