"""The keys of the JSON files of a run, as they are written and as docs/plugins/api/files.md says."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "plugins" / "api" / "files.md"


def documented(file: str) -> dict[str, str]:
    """The meaning of each key of a file."""
    table = PAGE.read_text(encoding="utf-8").split(f"| `{file}` | meaning |")[1].split("\n\n")[0]
    meanings = {}
    for line in table.splitlines()[2:]:
        keys, meaning = line.split("|")[1:3]
        meanings |= dict.fromkeys(re.findall("`(.+?)`", keys), meaning)
    return meanings


def paths(
    value: Any, names: Mapping[str, str], path: str = "", closed: Collection[str] = ()
) -> set[str]:
    """The places of all keys in JSON. names: what stands for some keys. closed: parts whose keys do
    not count.
    """
    if isinstance(value, list):
        return set().union(*(paths(item, names, path, closed) for item in value), set())
    if not isinstance(value, dict) or path in closed:
        return set()
    found: set[str] = set()
    for key, below in value.items():
        place = f"{path}.{'OPTION' if path == 'sampling' else names.get(key, key)}".lstrip(".")
        found |= {place} | paths(below, names, place, closed)
    return found
