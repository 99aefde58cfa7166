"""What the columns of a prompt say to the rewards and steps that read them."""

from __future__ import annotations

from typing import Any

from alignkit.data.group import Group, preview
from alignkit.errors import DataError, did_you_mean


def row_of(group: Group) -> str:
    """How messages name a prompt: its beginning, and where it was read."""
    return f"the prompt {preview(group)}{f' ({group.origin})' if group.origin else ''}"


def column_of(reader: str, group: Group, column: str, help: str = "") -> Any:
    """What a prompt's column holds, which may be None. Raises DataError if there is no such column.

    reader: begins the message, such as `exact_match`. help: what to do; default: the column with the nearest name.
    """
    if column in group.meta:
        return group.meta[column]
    names = ", ".join(group.meta) or "none"
    help = help or did_you_mean(column, group.meta)
    text = f"{reader}: {row_of(group)} has no column '{column}' (its columns: {names})"
    raise DataError(f"{text}\nhelp: {help}" if help else text)
