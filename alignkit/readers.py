"""Readers of files: what turns a file with a suffix of its own, such as a database, into rows of a data entry.

Files of rows (jsonl, csv, parquet ...) need none; see `alignkit.data.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from alignkit.io.digest import file_digest

BUILT_IN = frozenset((".jsonl", ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".yaml", ".py", ""))


class Reader:
    """Reads the files with one suffix. Registered under it, as in `register(".notes", Notes)`.

    grows: whether runs write into such files, so that a recipe may name one that does not exist yet.
    no_rows: why a file that can be read may have no row for a recipe.
    """

    grows: ClassVar[bool] = False
    no_rows: ClassVar[str] = "the source is empty"

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows; one that cannot be read is a `BadRow`. Raises DataError for a file that is unreadable."""
        raise NotImplementedError

    def digest(self, path: Path) -> str:
        """A digest of what `rows` yields. A stage that read the file runs again when it changes."""
        return file_digest(path)

    def facts(self, path: Path) -> Mapping[str, Any]:
        """What stage.json keeps of the file next to the facts of all sources, for reports."""
        return {}


_installed: dict[str, type[Reader]] = {}  # by suffix


def use_readers(readers: Mapping[str, type[Reader]]) -> None:
    """Let `reader_of` find these, and no others. Loading plugins calls it."""
    _installed.clear()
    _installed.update(readers)


def reader_of(path: Path) -> Reader | None:
    """The reader of a file; None for one of rows, and if no loaded plugin reads its suffix."""
    reader = _installed.get(path.suffix)
    return None if reader is None else reader()
