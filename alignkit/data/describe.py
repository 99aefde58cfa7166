"""What rows and their columns say, in the words of messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from alignkit.data.group import Group, Message, resolved_pairs


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
