"""Which files of its recipe's folder a plugin opens although its options do not name them.

The options are part of a stage's key, with the contents of the files that they name. A change of another file would not
make the stage run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.recipe.schema import fields_of
from alignkit.registry import Component

_CODE = (".py", ".pyc", ".pyi", ".so")
_opened: list[list[Path]] = []  # of each block that records; the innermost is the last


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened:
        path, mode, flags = arguments
        reads = not set(mode) & set("wax+") if isinstance(mode, str) else not flags & (os.O_WRONLY | os.O_RDWR)
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
    """The opened files below a folder that no option names, without code, packages and what is installed."""
    folder, installed = folder.resolve(), Path(sys.prefix).resolve()
    named = [path.resolve() for path in _named(component, folder)]
    found = []
    for path in dict.fromkeys(each.resolve() for each in opened):
        above = [parent for parent in path.parents if parent.is_relative_to(folder)]
        packaged = any((parent / "__init__.py").is_file() or parent.suffix.endswith("-info") for parent in above)
        known = path.is_relative_to(installed) or any(path.is_relative_to(each) for each in named)
        if above and not packaged and not known and path.suffix not in _CODE and path.is_file():
            found.append(path.relative_to(folder))
    return found


def _named(value: Any, folder: Path) -> Iterator[Path]:
    """The files and folders whose contents are part of a stage's key."""
    if isinstance(value, Path):
        yield folder / value
    elif isinstance(value, Component):
        fields = fields_of(value.options)
        yield from (folder / text for text in fields.values() if isinstance(text, str) and text)
        for below in fields.values():
            yield from _named(below, folder)
    elif isinstance(value, dict | BaseModel):
        for below in (fields_of(value) if isinstance(value, BaseModel) else value).values():
            yield from _named(below, folder)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _named(below, folder)
