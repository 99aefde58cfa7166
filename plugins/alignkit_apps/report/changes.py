"""What differs between two pieces of plain data, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LONGEST = 40  # characters of a value that a message shows; digests have 64


class Change(NamedTuple):
    """A value that differs. path: keys and indices that lead to it."""

    path: tuple[str | int, ...]
    old: Any
    new: Any


def differences(old: Any, new: Any) -> list[str]:
    """What differs between the parts of two results: `learning_rate 0.001 -> 0.002`, `versions.torch`.

    Contents, of which only digests are known, are named alone.
    """
    return [shown(change) for change in changes(old, new)]


def changes(old: Any, new: Any, path: tuple[str | int, ...] = ()) -> Iterator[Change]:
    """The values that differ between two pieces of plain data, in their order. Missing keys count as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from changes(old.get(name), new.get(name), (*path, name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from changes(before, now, (*path, index))
    elif old != new:
        yield Change(path, old, new)


def shown(change: Change) -> str:
    """`epochs 2 -> 3`, or only the name of a long value."""
    name = ".".join(map(str, change.path))
    for prefix in ("settings.", "component.options."):
        name = name.removeprefix(prefix)
    both = (change.old, change.new)
    plain = all(isinstance(value, str | int | float | None) and len(str(value)) <= LONGEST for value in both)
    return f"{name} {_shown(change.old)} -> {_shown(change.new)}" if plain else name


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
