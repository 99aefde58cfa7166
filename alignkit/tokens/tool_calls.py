"""Reads the calls of tools in what a policy wrote.

If the tokenizer says how its template writes calls (`response_template`), transformers reads them. Otherwise a call is
JSON in tags, as most templates write it: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.group import Message
from alignkit.tokens.chat_template import REASONING

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{OPEN}(.*?)(?:{CLOSE}|(?={OPEN})|\\Z)", re.DOTALL)


def read_turn(tokenizer: Any, text: str, prompt: str, tools: Sequence[Any] = (), first: int = 0) -> Message:
    """A turn of the policy as a message with its calls. Nothing that a policy writes raises an error.

    prompt: a rendered prompt, behind which the text would be. first: the number of the first call, for its id.
    """
    turn = _by_template(tokenizer, text, prompt, tools) if tools else None
    turn = turn or _by_tags(text)
    for number, call in enumerate(turn.get("tool_calls", ()), first):
        call["id"] = f"call{number:05d}"  # nine letters and digits, as Mistral's templates want them
    return turn


def _by_template(tokenizer: Any, text: str, prompt: str, tools: Sequence[Any]) -> Message | None:
    """What transformers reads; None if it knows no calls of this template, or found nothing that it could read."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        found = tokenizer.parse_response(text, prefix=prompt, tools=list(tools))
        calls = [_checked(call["function"]) for call in found.get("tool_calls") or ()]
    except Exception:  # whatever a policy's text makes of foreign code
        return None
    turn = Message(role="assistant", content=str(found.get("content") or ""))
    if found.get("thinking"):
        turn["reasoning_content"] = str(found["thinking"])
    if calls:
        turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def _by_tags(text: str) -> Message:
    """The turn with its well-formed calls. Others stay in the content, and `call_errors` says what is wrong."""
    calls: list[dict[str, Any]] = []
    errors: list[str] = []
    thoughts = text.rfind(REASONING[1]) + 1  # a call that is only thought of is none

    def read(match: re.Match[str]) -> str:
        if match.start() < thoughts:
            return match[0]
        try:
            if not match[0].endswith(CLOSE):
                raise ValueError(f"the call does not end with {CLOSE}")
            calls.append({"type": "function", "function": _checked(json.loads(match[1]))})
        except (ValueError, RecursionError) as error:
            errors.append(f'a call must be {OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE}: {error}')
            return match[0]
        return ""

    content = _CALL.sub(read, text)
    turn = Message(role="assistant", content=content.strip("\n") if calls else content)
    if calls:
        turn["tool_calls"] = calls
    if errors:
        turn["call_errors"] = errors
    return turn


def _checked(call: Any) -> dict[str, Any]:
    """A call's name and arguments. Raises ValueError if it has none."""
    if not isinstance(call, Mapping):
        raise ValueError(f"it is {type(call).__name__}, not an object")
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # JSON inside JSON
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name:
        raise ValueError("it has no 'name'")
    if not isinstance(arguments, Mapping):
        raise ValueError("its 'arguments' are not an object")
    return {"name": name, "arguments": dict(arguments)}
