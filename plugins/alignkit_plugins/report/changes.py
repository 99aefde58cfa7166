"""What differs between two pieces of plain data, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LONGEST = 40  # characters of a value that a message shows; digests have 64


class Change(NamedTuple):
    """A value that differs. path: keys and indices that lead to it."""

    path: tuple[str | int, ...]
    old: Any
    new: Any


def changes(old: Any, new: Any, path: tuple[str | int, ...] = ()) -> Iterator[Change]:
    """The values that differ between two pieces of plain data, in their order. Missing keys count
    as None.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from changes(old.get(name), new.get(name), (*path, name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from changes(before, now, (*path, index))
    elif old != new:
        yield Change(path, old, new)


def shown(change: Change, name: str = "") -> str:
    """`epochs: 2 -> 3`, or that a long value has changed. name: default: its path."""
    name = name or re.sub(r"^(settings|component\.options)\.", "", ".".join(map(str, change.path)))
    both = (change.old, change.new)
    if any(
        not isinstance(value, str | int | float | None) or len(str(value)) > LONGEST
        for value in both
    ):
        return f"{name} has changed"
    old, new = ("not set" if value is None else value for value in both)
    return f"{name}: {old} -> {new}"
