"""Read a run's files whatever state they are in: what is damaged is left out and counted, never an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignkit.io.digest import digest
from alignkit.runs.files import RECIPE

# What files that hold something else than expected lead to.
UNEXPECTED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError, OSError)


@dataclass
class Lines:
    """The objects of a .jsonl file. damaged: lines that are no object."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0


def read_text(path: Path) -> str:
    """A file's text with a sign for every byte that is not UTF-8; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def each_object(path: Path) -> Iterator[dict[str, Any] | None]:
    """The object of each line of a file, one at a time; None for a line that is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield _object(line)
    except OSError:
        return


def read_lines(path: Path) -> Lines:
    """All objects of a .jsonl file."""
    lines = Lines()
    for row in each_object(path):
        if row is None:
            lines.damaged += 1
        else:
            lines.rows.append(row)
    return lines


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run; empty if it is damaged."""
    return load_yaml(read_text(folder / RECIPE))


def load_yaml(text: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; empty if it is damaged."""
    try:
        value = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_stage(folder: Path) -> tuple[dict[str, Any], bool]:
    """What a stage folder's stage.json says, and whether it is what the run wrote. A damaged one says what it can."""
    if not (folder / "stage.json").is_file():
        return {}, True
    record = read_object(folder / "stage.json")
    check = record.pop("check", None)
    return record, check == digest(record)


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
