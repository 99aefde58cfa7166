"""What differs between two pieces of plain data, and what a change of a recipe is called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from alignkit.errors import path_text
from alignkit.io.results import recorded
from alignkit.io.text import listed
from alignkit.recipe.schema import Stage

LONGEST = 40  # characters of a value that a message shows; digests have 64
_CODE = {"source", "version", "recognized"}  # a plugin's parts, compared by digests
_AROUND = ("settings", "component", "options", "sources")  # keys that a recipe does not write
_CONTENTS = {"base": "the base model", "template": "the chat template"}

Path = tuple[str | int, ...]


class Change(NamedTuple):
    """A value that differs. path: keys and indices that lead to it."""

    path: Path
    old: Any
    new: Any


def flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """The values of nested plain data by the keys and indices that lead to them; empty mappings and
    lists have none.
    """
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {path: value}
    found = dict[Path, Any]()
    for key, below in items:
        found |= flat(below, (*path, key))
    return found


def changes(old: Any, new: Any) -> list[Change]:
    """The values that differ between two pieces of plain data. Missing ones count as None."""
    before, now, found = flat(old), flat(new), list[Change]()
    for path in {**before, **now}:
        change = Change(path, before.get(path), now.get(path))
        if change.old != change.new:
            found.append(change)
    return found


def change_in_words(change: Change) -> str:
    """`epochs: 2 -> 3`, or that a long value has changed, by the keys that a recipe writes."""
    name = _name(change.path)
    if max(len(str(change.old)), len(str(change.new))) > LONGEST:
        return f"{name} has changed"
    old, new = ("not set" if value is None else value for value in (change.old, change.new))
    return f"{name}: {old} -> {new}"


def _name(path: Path) -> str:
    names = list[str]()
    for key, before in zip(path, (None, *path), strict=False):
        if key not in _AROUND and (key, before) != (0, "sources"):
            names.append(str(key).rstrip("_"))
    return path_text(names or path)


def change_since(record: Mapping[str, Any], parts: Mapping[str, Any], stage: Stage) -> str:
    """` (epochs: 2 -> 3)`: what changed since a result was made; empty if its record does not say.

    record: of stage.json. parts: what the key is made of now.
    """
    now = recorded(parts)
    found = record.get("depends_on") and differing(record["depends_on"], now, stage.kind)
    if not found:
        return ""
    return f" ({listed(found)})"


def differing(before: Mapping[str, Any], now: Mapping[str, Any], kind: str) -> list[str]:
    """What differs between the parts of two keys, in words, the user's changes first. kind: what
    their plugin is.
    """
    every, names = dict[str, None](), flat(now)
    was, plugin = before["component"]["name"], now["component"]["name"]
    if was != plugin:
        every[f"{kind}: {was} -> {plugin}"] = None
    for change in changes(before, now):
        # With the defaults of another plugin, all else may differ
        if was == plugin or (
            change.path[0] == "settings" and before["settings"] and now["settings"]
        ):
            every[_in_words(change, names)] = None
    return sorted(every, key=lambda text: text.startswith("the code of"))


def _in_words(change: Change, names: Mapping[Path, Any]) -> str:
    """names: all values now, among which are the names of plugins."""
    path = change.path
    for at, key in enumerate(path):
        if key in _CODE:
            return f"the code of {names.get((*path[:at], 'name'), 'alignkit')} has changed"
    if path[0] in _CONTENTS:
        return f"{_CONTENTS[str(path[0])]} has changed"
    if "files" in path:
        folder, name = os.path.split(str(path[-1]))
        if not name:
            return f"{os.path.basename(folder)}: files were added or removed"
        return f"{name}: the file has changed"
    if path[-1] == "content":
        return f"{_name(path[:-1])}: the file has changed"
    if path[0] == "upstream" and change.old and change.new:
        return f"{path[1]} has changed"
    return change_in_words(change)
