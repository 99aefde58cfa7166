"""Readers of files: what turns a file with a suffix of its own, such as a table or a database, into rows.

Files of JSON and of text need none; see `alignkit.data.files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from alignkit.data.files import suffix_of
from alignkit.errors import DataError
from alignkit.io.digest import file_digest
from alignkit.plugins import plugins
from alignkit.registry import Registration, Unresolved

HUB = Path("data.hub")  # stands for what `hub:` names


class Reader:
    """Reads the files with one suffix. Registered under it, as in `add("reader", ".notes", Notes)`.

    Attributes:
        grows: Whether runs write into such files, so that a recipe may name one that does not exist yet.
        no_rows: Why a file that can be read may have no row for a recipe.
    """

    grows: ClassVar[bool] = False
    no_rows: ClassVar[str] = "the source is empty"

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows; one that cannot be read is a `BadRow`.

        Args:
            path: The file.

        Raises:
            DataError: For a file that is unreadable.
        """
        raise NotImplementedError

    def rows_of(self, source: Any, commit: Callable[[str, str | None], str | None]) -> Iterator[tuple[int, Any]]:
        """The rows of a source of a recipe. Default: those of its file.

        Args:
            source: With the keys of the recipe, such as `path`.
            commit: Finds the commit of a data set on the hub and its revision.
        """
        return self.rows(source.path)

    def digest(self, path: Path) -> str:
        """A digest of what `rows` yields. A stage that read the file runs again when it changes.

        Args:
            path: The file.
        """
        return file_digest(path)

    def facts(self, path: Path) -> Mapping[str, Any]:
        """What stage.json keeps of the file next to the facts of all sources, for reports.

        Args:
            path: The file.
        """
        return {}


def reader_of(path: Path) -> Reader | None:
    """The reader of a file; None for one of JSON or text, and if no plugin reads its suffix.

    Raises DataError if several plugins read it.
    """
    registration = registration_of(path)
    return None if registration is None else registration.implementation()


def registration_of(path: Path) -> Registration | None:
    """Where the reader of a file is from. See `reader_of`."""
    suffix = suffix_of(path)
    if not plugins().registry.has("reader", suffix):
        return None
    try:
        return plugins().registry.get("reader", suffix)
    except Unresolved as error:
        origins = [one.origin for one in plugins().registry.registrations("reader") if one.name == suffix]
        text = f"{path}: {' and '.join(origins)} read files with this suffix; disable one: --no-plugin PACKAGE:NAME"
        raise DataError(text) from error
