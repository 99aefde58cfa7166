"""What rows and their columns say, in the words of messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from alignkit.data.group import Group, Message, preview, resolved_pairs
from alignkit.errors import DataError, did_you_mean


def way_out(groups: Sequence[Group]) -> str:
    """The help for rows from which an algorithm cannot learn, by the first one; empty if it is not plain."""
    if not groups:
        return ""
    group = groups[0]
    file = group.origin.file if group.origin else "FILE"
    if len(group.responses) > 1 and not resolved_pairs(group):
        labeled = f"if a column says it: data: {{labeled_pairs: {{path: {file}, label: COLUMN}}}}"
        return f"\nhelp: nobody said which response is better: `alignkit label {file}`\n  or: {labeled}"
    name = next((name for name in group.meta if name in ("answer", "target", "solution", "output")), "")
    if name and not group.responses:
        return f"\nhelp: if '{name}' is the response: data: {{path: {file}, columns: {{completion: {name}}}}}"
    return ""


def said(turns: Iterable[Message]) -> str:
    """What turns say, with their reasoning and tool calls in brackets."""
    parts = []
    for turn in turns:
        parts += [f"[thinks: {turn['reasoning_content']}]"] if turn.get("reasoning_content") else []
        parts += [turn["content"]] if turn["content"].strip() else []
        parts += [_call(call) for call in turn.get("tool_calls", ())]
    return " ".join(parts)


def _call(call: object) -> str:
    function = call.get("function", call) if isinstance(call, dict) else {}
    return f"[calls {function.get('name')}({json.dumps(function.get('arguments'), ensure_ascii=False)})]"


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
