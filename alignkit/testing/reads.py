"""Which files of its recipe's folder a plugin opens although its options do not name them.

The options are part of a stage's key, with the contents of the files that they name. A change of
another file would not make the stage run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.recipe.schema import walk
from alignkit.registry import Component

_CODE = (".py", ".pyc", ".pyi", ".so")
_opened: list[list[Path]] = []  # of each block that records; the innermost is the last


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened:
        path, mode, flags = arguments
        reads = (
            not set(mode) & set("wax+")
            if isinstance(mode, str)
            else not flags & (os.O_WRONLY | os.O_RDWR)
        )
        if reads and isinstance(path, str | bytes | os.PathLike):
            _opened[-1].append(Path(os.fsdecode(path)))


@cache
def _listen() -> None:
    sys.addaudithook(_record)  # it cannot be removed


@contextmanager
def recorded() -> Iterator[list[Path]]:
    """The files that are opened for reading in the block."""
    _listen()
    _opened.append([])
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def unnamed(opened: list[Path], component: Component, folder: Path) -> list[Path]:
    """The opened files below a folder that no option names, without code, packages and what is
    installed.
    """
    folder = folder.resolve()
    named = [Path(sys.prefix).resolve(), *(path.resolve() for path in _named(component, folder))]
    found = []
    for path in dict.fromkeys(each.resolve() for each in opened):
        is_named = any(path.is_relative_to(each) for each in named)
        if (
            is_named
            or path.suffix in _CODE
            or not path.is_relative_to(folder)
            or not path.is_file()
        ):
            continue
        if not any(
            (parent / "__init__.py").is_file() or parent.suffix.endswith("-info")
            for parent in path.parents
        ):
            found.append(path.relative_to(folder))
    return found


def _named(component: Component, folder: Path) -> Iterator[Path]:
    """The files and folders whose contents are part of a stage's key."""
    for _, value in walk(component.options):
        if isinstance(value, str | Path) and str(value):
            yield folder / value
