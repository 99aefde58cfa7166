"""Turns of conversations as data sets store them: OpenAI's, ShareGPT's, axolotl's and
LLaMA-Factory's keys.

| a turn has | it is read as |
|---|---|
| `role` or `from`: human, prompter, user | a user turn |
| gpt, model, assistant | an assistant turn |
| system, developer | a system turn |
| tool, function, observation, function_response, ipython | a tool turn: the result of a call |
| function_call, tool_call | an assistant turn whose calls are its text, as JSON |
| `tool_calls` or `function_call` next to the text | calls; arguments may be an object or its JSON |
| `reasoning_content`, `reasoning`, `thinking` | what the assistant thought before its text |
| `train` true or false | whether an assistant turn is learned |
| `weight`, a number of 0 or more | how much its tokens count in the loss of a demonstration |
| `content`, `value` or `text` | text, or a list of parts of text; a tool's may be any JSON |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Message
from alignkit.contract.formats import columns_of
from alignkit.data.files import kind_of, parse
from alignkit.data.group import ROLES

SPEAKERS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
} | {role: role for role in ROLES}
CALLERS = ("function_call", "tool_call")  # speakers whose text is a call
REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys of a turn that mean something in other tools, which would be lost.
FOREIGN = (
    *("training", "loss", "loss_weight", "mask", "train_detail"),
    *("tools", "functions", "function_calls"),
    *("image", "images", "video", "audio"),
)
NOTHING: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")
PLAIN = {"role", "content"}


def first_of(row: Any, names: Iterable[str]) -> str:
    """The first of these columns that a row has; empty if it has none."""
    return next((name for name in names if Format.has(row, name)), "")


def only_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these columns that says something, else the first that a row has. Raises BadRow if
    two of them say different things.
    """
    row = columns_of(row)
    filled = [name for name in names if row.get(name) not in NOTHING]
    if len(filled) > 1 and len({str(row[name]).lower() for name in filled}) > 1:
        raise BadRow(f"{' and '.join(filled)} contradict each other; rename one of them")
    return next(iter(filled), first_of(row, names))


def read_message(turn: Any, where: str) -> Message:
    """A message from a turn with any of the keys in the module's table. Raises BadRow that names
    `where`.
    """
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be a message, not {kind_of(turn)}")
    speaker = turn.get(first_of(turn, ("role", "from")))
    name = str(speaker).strip().lower()
    role = SPEAKERS.get(name)
    if role is None:
        raise BadRow(
            f"{where} has the unknown role {str(speaker)[:60]!r}; expected one of "
            f"{', '.join(SPEAKERS)}; a template says who it is: `messages: '{{{{ messages | "
            f"turns(user=[{json.dumps(str(speaker)[:60])}]) }}}}'`"
        )
    content = turn.get("content")
    if turn.keys() <= PLAIN and name not in CALLERS and isinstance(content, str):
        return Message(role=role, content=content)  # nearly all turns; several times as fast
    if SPEAKERS.get(str(turn.get("from")).strip().lower(), role) != role:
        raise BadRow(f"{where}: role and from contradict each other; rename one of them")
    content = turn.get(only_of(turn, ("content", "value", "text")))
    for key in FOREIGN:
        if turn.get(key) not in NOTHING:
            raise BadRow(f"{where} has '{key}', which would be lost; remove it if it means nothing")
    message: Any = Message(role=role, content="")
    calls = list[dict[str, Any]]()
    if made := turn.get(only_of(turn, ("tool_calls", "function_call"))):
        calls = _calls(made, where)
    if role == "tool" and _is_result(content):
        content = json.dumps(content, ensure_ascii=False)
    if content is None and calls:
        content = ""
    text = _text(content, where)
    if name in CALLERS:
        calls += _calls(text, where)
    else:
        message["content"] = text
    thought = turn.get(only_of(turn, REASONING)) or ""
    if not isinstance(thought, str):
        raise BadRow(f"{where} must have text as its reasoning, not {kind_of(thought)}")
    if role != "assistant" and (thought or calls):
        raise BadRow(
            f"{where}: only assistant turns have reasoning and tool calls, but its role is "
            f"{speaker!r}"
        )
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    if role == "assistant":
        message |= _trained(turn, where)
    for key in ("name", "tool_call_id"):
        if turn.get(key) and isinstance(turn[key], str):
            message[key] = turn[key]
    return message


def _trained(turn: Mapping[str, Any], where: str) -> dict[str, bool | float]:
    """Whether the turn is learned, or how much it counts; nothing if it does not say."""
    train, weight = turn.get("train"), turn.get("weight")
    if not isinstance(train, bool | None):
        raise BadRow(f"{where}: train must be true or false, not {str(train)[:60]!r}")
    if not isinstance(weight, int | float | None) or not 0 <= (weight or 0) < math.inf:
        raise BadRow(f"{where}: weight must be a number of 0 or more, not {str(weight)[:60]!r}")
    if train is False or weight == 0:
        return {"train": False}
    if weight not in (None, 1):
        return {"train": float(weight)}
    if train or weight:
        return {"train": True}
    return {}


def _is_result(value: Any) -> bool:
    """Whether a tool's result is a value, and neither a text nor a list of parts of text."""
    if isinstance(value, list | tuple):
        return not value or not all(
            isinstance(p, str) or (isinstance(p, Mapping) and "type" in p) for p in value
        )
    return isinstance(value, Mapping | bool | int | float)


def _text(content: Any, where: str) -> str:
    """The text of a turn's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRow(
            f"{where} must have text as its content, not {kind_of(content)}; write '' for nothing"
        )
    text = ""
    for part in content:
        value = part
        if isinstance(part, Mapping) and part.get("type", "text") == "text":
            value = part.get(first_of(part, ("text", "value")))
        if not isinstance(value, str):
            raise BadRow(f"{where} has content other than text: {str(part)[:60]}")
        text += value
    return text


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls, or JSON of them, in OpenAI's envelope. Their arguments are an object: templates write
    it as JSON.
    """
    value = _json(value, where)
    calls = value
    if isinstance(value, Mapping):
        calls = [value]
    if not isinstance(calls, list | tuple) or not calls:
        raise BadRow(
            f"{where}: a tool call must be {{name, arguments}} or a list of these, not "
            f"{kind_of(value)}"
        )
    read = []
    for call in calls:
        function: Any = call.get("function", call) if isinstance(call, Mapping) else None
        if not Format.has(function, "name") or not isinstance(function["name"], str):
            raise BadRow(f"{where}: a tool call must have a name, and arguments")
        arguments = function.get(only_of(function, ("arguments", "parameters")))
        arguments = _json(arguments, where) or {}
        if not isinstance(arguments, Mapping):
            raise BadRow(f"{where}: the arguments of {function['name']!r} must be an object")
        envelope: dict[str, Any] = {
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
        if call.get("id") and isinstance(call["id"], str):
            envelope["id"] = call["id"]
        read.append(envelope)
    return read


def _json(value: Any, where: str) -> Any:
    """A value, which may be JSON text of it; None for a blank text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value) if value.strip() else None
    except BadRow as error:
        raise BadRow(
            f"{where}: not valid JSON of a tool or a call: {value[:60]!r}: {error}"
        ) from error


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that the assistant may call: a list of JSON schemas, or JSON text of one; () if
    there are none.

    A schema without OpenAI's envelope {"type": "function", "function": ...} gets one, as templates
    expect it.
    """
    value = _json(value, "column 'tools'")
    schemas = [value] if isinstance(value, Mapping) else value or ()
    if not isinstance(schemas, list | tuple) or not all(
        isinstance(schema, Mapping) for schema in schemas
    ):
        raise BadRow(
            f"column 'tools' must be a list of JSON schemas of functions, not {kind_of(value)}"
        )
    envelopes = []
    for schema in schemas:
        if "function" not in schema:
            schema = {"type": "function", "function": dict(schema)}
        envelopes.append(dict(schema))
    return tuple(envelopes)
