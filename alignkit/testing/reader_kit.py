"""The rules of readers of files: numbered rows, the same on every read, and a DataError for what is no such file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alignkit.errors import BadRow, DataError
from alignkit.readers import Reader
from alignkit.testing.checks import ConformanceError, check_registered
from alignkit.testing.purity import watched


def check_reader(cls: type[Reader], path: Path) -> None:
    """Raise ConformanceError listing every rule that a reader breaks (see the table in `alignkit.testing`).

    Args:
        path: A file that it reads, with at least one row.
    """
    name = check_registered("reader", cls)
    with watched():
        problems = list(_problems(cls, path))
    if problems:
        raise ConformanceError("\n".join(f"{name}: {problem}" for problem in problems))


def _problems(cls: type[Reader], path: Path) -> Iterator[str]:
    before, rows = path.read_bytes(), list(cls().rows(path))
    numbers = [number for number, _ in rows]
    if not rows:
        yield "`rows`: there is none: pass another file as `path`"
    if not all(isinstance(number, int) and number > 0 for number in numbers) or sorted(set(numbers)) != numbers:
        yield f"`rows`: number them upward from 1, so that an error can name a row; these are {numbers[:5]}"
    if _plain(rows) != _plain(list(cls().rows(path))):
        yield "`rows`: a second read has other rows"
    digests = {cls().digest(path) for _ in range(2)}
    if len(digests) > 1 or not all(isinstance(digest, str) and digest for digest in digests):
        yield f"`digest`: return the same text for the same rows, not {sorted(map(repr, digests))}"
    try:
        json.dumps(dict(cls().facts(path)), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"`facts`: they must be JSON, because stage.json keeps them: {error}"
    if path.read_bytes() != before:
        yield "it changes the file that it reads"
    yield from _refusals(cls, path.suffix)


def _plain(rows: list[tuple[int, object]]) -> list[tuple[int, object]]:
    return [(number, str(row) if isinstance(row, BadRow) else row) for number, row in rows]


def _refusals(cls: type[Reader], suffix: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as folder:
        for what, content in (("an empty file", b""), ("a file of something else", b"\x00\xff no such file \n" * 99)):
            file = Path(folder) / f"strange{suffix}"
            file.write_bytes(content)
            try:
                found = list(cls().rows(file))
            except DataError:
                continue
            except Exception as error:
                yield f"`rows`: {what} raises {type(error).__name__}: raise DataError with the path, and what to do"
                continue
            if any(not isinstance(row, BadRow) for _, row in found):
                yield f"`rows`: {what} has {len(found)} rows"
