"""Read the files of a run. What is not there yet is empty; what is damaged is an error that names
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import DataError
from alignkit.io.results import RECIPE


def read_text(path: Path) -> str:
    """A file's text with a sign for every byte that is not UTF-8; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none. Raises DataError for a damaged one."""
    return _object(read_text(path), path) if path.is_file() else {}


def each_object(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line of a file, one at a time. The last line may be unfinished, as its
    process was killed.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = _object(line, f"{path}:{number}")
            except DataError:
                if line.endswith("\n"):
                    raise
                return
            yield value


def _object(text: str, where: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        help = "`alignkit run` with the same recipe and folder makes it again"
        raise DataError(f"{where} is damaged: it is no JSON object\nhelp: {help}")
    return value


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run. Raises DataError if it is damaged."""
    return load_yaml(read_text(folder / RECIPE), folder / RECIPE)


def load_yaml(text: str, where: Any = "the recipe") -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises DataError for another one."""
    try:
        value = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{where} is damaged: it is no YAML mapping")
    return value
