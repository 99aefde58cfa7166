"""Conversations as data sets store them, read as messages: OpenAI's, ShareGPT's, axolotl's and LLaMA-Factory's keys.

| a turn has | it is read as |
|---|---|
| `role` or `from`: human, prompter, user | a user turn |
| gpt, model, assistant | an assistant turn |
| system, developer | a system turn |
| tool, function, observation, function_response, ipython | a tool turn: the result of a call |
| function_call, tool_call | an assistant turn whose calls are its text, as JSON |
| `tool_calls` or `function_call` next to the text | calls; their arguments may be an object or JSON of one |
| `reasoning_content`, `reasoning`, `thinking` | what the assistant thought before its text |
| `train`, `training` or `loss` true or false | whether an assistant turn is learned |
| `weight` or `loss_weight`, a number of 0 or more | how much its tokens count in the loss of a demonstration |
| `content`, `value` or `text` | text, or a list of parts of text, reasoning and calls; a tool's may be any JSON |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit.data.files import kind_of
from alignkit.data.group import ROLES, Message
from alignkit.errors import BadRow

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
TOOL_COLUMNS = ("tool_defs", "tool_schemas", "available_tools")
REASONING = ("reasoning_content", "reasoning", "thinking")
FLAGS = ("train", "training", "loss")
WEIGHTS = ("weight", "loss_weight")
FOREIGN = {  # what a turn would lose
    "mask": "whether the turn is learned",
    "train_detail": "which parts of the turn are learned",
    "tools": "functions of the row's column 'tools'",
    "functions": "functions of the row's column 'tools'",
    "function_calls": "calls, whose key is 'tool_calls'",
    "image": "a picture",
    "images": "pictures",
    "video": "a film",
    "audio": "sound",
}
NOTHING = ("[]", "{}", "null")  # as JSON
PLAIN = {"role", "content"}


def read_message(turn: Any, where: str) -> Message:
    """A message from a turn with any of the keys in the module's table. Raises BadRow that names `where`."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be a message, not {kind_of(turn)}")
    speaker = _first(turn, "role", "from")
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    role = SPEAKERS.get(name)
    if role is None:
        raise BadRow(f"{where} has the unknown role {str(speaker)[:60]!r}; expected one of {', '.join(SPEAKERS)}")
    if turn.keys() <= PLAIN and name not in CALLERS and isinstance(text := turn.get("content"), str):
        return Message(role=role, content=text)  # nearly all turns; several times as fast
    if lost := next((key for key in FOREIGN if turn.get(key) and turn[key] not in NOTHING), ""):
        raise BadRow(f"{where} has '{lost}', {FOREIGN[lost]}, which would be lost; remove it if it means nothing")
    calls = _calls_beside(turn, where)
    said_there = _first(turn, "content", "value", "text")
    if role == "tool" and name not in CALLERS and _is_result(said_there):
        said_there = json.dumps(said_there, ensure_ascii=False)
    content, reasoning, inner_calls = _content(said_there, where, empty=bool(calls))
    if name in CALLERS:
        content, inner_calls = "", [*inner_calls, *_calls(_json(content, where), where)]
    said = Message(role=role, content=content)
    if thought := _reasoning_beside(turn, where) or reasoning:
        said["reasoning_content"] = thought
    if all_calls := [*calls, *inner_calls]:
        said["tool_calls"] = all_calls
    if role == "assistant" and (trained := _trained(turn, where)) is not None:
        said["train"] = trained
    _add_names(said, turn)
    if role != "assistant" and ("tool_calls" in said or "reasoning_content" in said):
        raise BadRow(f"{where}: only assistant turns have reasoning and tool calls, but its role is {speaker!r}")
    return said


def tools_column(row: Mapping[str, Any]) -> str:
    """The column with a row's tools: `tools`, or another usual name whose value is a list of schemas."""
    if row.get("tools"):
        return "tools"
    return next((name for name in TOOL_COLUMNS if _are_schemas(row.get(name))), "tools")


def _are_schemas(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    if not isinstance(value, list | tuple) or not value:
        return False
    functions = [each.get("function", each) if isinstance(each, Mapping) else None for each in value]
    return all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in functions)


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that the assistant may call: a list of JSON schemas, or JSON text of one; () if there are none.

    A schema without OpenAI's envelope {"type": "function", "function": ...} gets one, as templates expect it.
    """
    if isinstance(value, str):
        value = _json(value, "column 'tools'") if value.strip() else None
    schemas = [value] if isinstance(value, Mapping) else value or ()
    if not isinstance(schemas, list | tuple) or not all(isinstance(schema, Mapping) for schema in schemas):
        raise BadRow(f"column 'tools' must be a list of JSON schemas of functions, not {kind_of(value)}")
    return tuple(
        dict(schema) if "function" in schema else {"type": "function", "function": dict(schema)} for schema in schemas
    )


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of turns that both conversations begin with."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _add_names(said: Message, turn: Mapping[str, Any]) -> None:
    name, call = turn.get("name"), turn.get("tool_call_id")
    if isinstance(name, str) and name:
        said["name"] = name
    if isinstance(call, str) and call:
        said["tool_call_id"] = call


def _trained(turn: Mapping[str, Any], where: str) -> bool | float | None:
    """Whether the turn is learned, or how much it counts; None if it does not say."""
    train: bool | float | None = None
    for name in (*FLAGS, *WEIGHTS):
        value = turn.get(name)
        if value is None:
            continue
        if name in FLAGS and not isinstance(value, bool):
            raise BadRow(f"{where}: {name} must be true or false, not {str(value)[:60]!r}")
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadRow(f"{where}: {name} must be a number of 0 or more, not {str(value)[:60]!r}")
        value = bool(value) if value in (0, 1) else float(value)  # 0 and 1 are false and true
        train = value if train in (None, True) else train and value and min(train, value)
    return train


def _reasoning_beside(turn: Mapping[str, Any], where: str) -> str:
    value = _first(turn, *REASONING)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{where} must have text as its reasoning, not {kind_of(value)}")
    return value or ""


# Content


def _is_result(value: Any) -> bool:
    """Whether a tool's result is a value, and neither a text nor a list of parts of text."""
    if isinstance(value, list | tuple):
        return not value or not all(isinstance(p, str) or (isinstance(p, Mapping) and "type" in p) for p in value)
    return isinstance(value, Mapping | bool | int | float)


def _content(content: Any, where: str, empty: bool) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, reasoning and calls of a turn's content. empty: it may be null."""
    if content is None and empty:
        return "", "", []
    if isinstance(content, str):
        return content, "", []
    if not isinstance(content, list | tuple):
        help = "; write '' if nothing was said" if content is None else ""
        raise BadRow(f"{where} must have text as its content, not {kind_of(content)}{help}")
    text, reasoning, calls = list[str](), list[str](), list[dict[str, Any]]()
    for kind, value in _parts(content, where):
        if kind == "call":
            calls += _calls(_json(value, where) if isinstance(value, str) else value, where)
        else:
            (text if kind == "text" else reasoning).append(value)
    return "".join(text), "".join(reasoning), calls


def _parts(content: list[Any] | tuple[Any, ...], where: str) -> Iterator[tuple[str, Any]]:
    for part in content:
        if isinstance(part, str):
            yield "text", part
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text") and isinstance(said := _first(part, "text", "value"), str):
            yield "text", said
        elif kind in REASONING and isinstance(said := _first(part, kind, "text", "value"), str):
            yield "reasoning", said
        elif kind == "tool_call":
            yield "call", _first(part, "tool_call", "value")
        else:
            shown = f"a part of type {str(kind)[:40]!r}" if kind is not None else kind_of(part)
            raise BadRow(f"{where} has content other than text: {shown}")


# Calls


def _calls_beside(turn: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    calls = _first(turn, "tool_calls", "function_call")
    if calls in (None, "", [], {}):
        return []
    return _calls(_json(calls, where) if isinstance(calls, str) else calls, where)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's envelope, with their arguments as an object: templates write it as JSON themselves."""
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list | tuple) or not calls:
        raise BadRow(f"{where}: a tool call must be {{name, arguments}} or a list of these, not {kind_of(value)}")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool call must have a name, and arguments")
    arguments = _first(function, "arguments", "parameters")
    if isinstance(arguments, str):
        arguments = _json(arguments, where) if arguments.strip() else None
    if not isinstance(arguments, Mapping | None):
        raise BadRow(f"{where}: the arguments of the tool call {function['name']!r} must be an object")
    read: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return read | ({"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {})


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{where}: not valid JSON of a tool or a call: {text[:60]!r}") from error
