"""Columns with conversations as data sets store them: OpenAI's, ShareGPT's, axolotl's and
LLaMA-Factory's keys.

| a turn has | it is read as |
|---|---|
| `role` or `from`: human, prompter, user | a user turn |
| gpt, model, assistant | an assistant turn |
| system, developer | a system turn |
| tool, function, observation, function_response, ipython | a tool turn: the result of a call |
| function_call, tool_call | an assistant turn whose calls are its text, as JSON |
| `tool_calls` or `function_call` next to the text | calls; their arguments may be an object or JSON
of one |
| `reasoning_content`, `reasoning`, `thinking` | what the assistant thought before its text |
| `train`, `training` or `loss` true or false | whether an assistant turn is learned |
| `weight` or `loss_weight`, a number of 0 or more | how much its tokens count in the loss of a
demonstration |
| `content`, `value` or `text` | text, or a list of parts of text, reasoning and calls; a tool's may
be any JSON |
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Message, Pair, Response
from alignkit.data.files import kind_of
from alignkit.data.group import LEVELS, ROLES
from alignkit.formats import columns_of, to_number

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
LABEL_COLUMNS = ("label", "kto_tag")

CHOICES = ("choices", "options", "endings")

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
TEXTS = ("text", "input_text", "output_text")
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
    """A message from a turn with any of the keys in the module's table. Raises BadRow that names
    `where`.
    """
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be a message, not {kind_of(turn)}")
    speaker = _first(turn, "role", "from")
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    role = SPEAKERS.get(name)
    if role is None:
        raise BadRow(
            f"{where} has the unknown role {str(speaker)[:60]!r}; expected one of "
            f"{', '.join(SPEAKERS)}"
        )
    if (
        turn.keys() <= PLAIN
        and name not in CALLERS
        and isinstance(text := turn.get("content"), str)
    ):
        return Message(role=role, content=text)  # nearly all turns; several times as fast
    if lost := next((key for key in FOREIGN if turn.get(key) and turn[key] not in NOTHING), ""):
        raise BadRow(
            f"{where} has '{lost}', {FOREIGN[lost]}, which would be lost; remove it if it means "
            "nothing"
        )
    calls = _first(turn, "tool_calls", "function_call")
    calls = [] if calls in (None, "", [], {}) else _calls(calls, where)
    value = _first(turn, "content", "value", "text")
    if role == "tool" and name not in CALLERS and _is_result(value):
        value = json.dumps(value, ensure_ascii=False)
    content, reasoning, inner_calls = _content(value, where, empty=bool(calls))
    calls += inner_calls
    if name in CALLERS:
        calls += _calls(content, where)
        content = ""
    thought = _first(turn, *REASONING)
    if not isinstance(thought, str | None):
        raise BadRow(f"{where} must have text as its reasoning, not {kind_of(thought)}")
    said = Message(role=role, content=content)
    if reasoning := thought or reasoning:
        said["reasoning_content"] = reasoning
    if calls:
        said["tool_calls"] = calls
    if role == "assistant" and (trained := _trained(turn, where)) is not None:
        said["train"] = trained
    if isinstance(turn.get("name"), str) and turn["name"]:
        said["name"] = turn["name"]
    if isinstance(turn.get("tool_call_id"), str) and turn["tool_call_id"]:
        said["tool_call_id"] = turn["tool_call_id"]
    if role != "assistant" and ("tool_calls" in said or "reasoning_content" in said):
        raise BadRow(
            f"{where}: only assistant turns have reasoning and tool calls, but its role is "
            f"{speaker!r}"
        )
    return said


def tools_column(row: Mapping[str, Any]) -> str:
    """The column with a row's tools: `tools`, or another usual name whose value is a list of
    schemas.
    """
    if row.get("tools"):
        return "tools"
    return next(
        (name for name in TOOL_COLUMNS if row.get(name) and _are_schemas(row[name])), "tools"
    )


def _are_schemas(value: Any) -> bool:
    try:
        functions = [tool["function"] for tool in tools_of(value)]
    except BadRow:
        return False
    names = [each.get("name") if isinstance(each, Mapping) else None for each in functions]
    return bool(names) and all(isinstance(name, str) for name in names)


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that the assistant may call: a list of JSON schemas, or JSON text of one; () if
    there are none.

    A schema without OpenAI's envelope {"type": "function", "function": ...} gets one, as templates
    expect it.
    """
    if isinstance(value, str):
        value = _json(value, "column 'tools'") if value.strip() else None
    schemas = [value] if isinstance(value, Mapping) else value or ()
    if not isinstance(schemas, list | tuple) or not all(
        isinstance(schema, Mapping) for schema in schemas
    ):
        raise BadRow(
            f"column 'tools' must be a list of JSON schemas of functions, not {kind_of(value)}"
        )
    return tuple(
        dict(schema) if "function" in schema else {"type": "function", "function": dict(schema)}
        for schema in schemas
    )


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of turns that both conversations begin with, up to a turn that the assistant
    answers.
    """
    same = 0
    for count, (turn, theirs) in enumerate(zip(one, other, strict=False), 1):
        if turn != theirs:
            break
        if turn["role"] != "assistant":
            same = count
    return same


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


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


# Content


def _is_result(value: Any) -> bool:
    """Whether a tool's result is a value, and neither a text nor a list of parts of text."""
    if isinstance(value, list | tuple):
        return not value or not all(
            isinstance(p, str) or (isinstance(p, Mapping) and "type" in p) for p in value
        )
    return isinstance(value, Mapping | bool | int | float)


def _content(content: Any, where: str, empty: bool) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, reasoning and calls of a turn's content. empty: it may be null."""
    if content is None and empty:
        content = ""
    if isinstance(content, str):
        return content, "", []
    if not isinstance(content, list | tuple):
        help = "; write '' if nothing was said" if content is None else ""
        raise BadRow(f"{where} must have text as its content, not {kind_of(content)}{help}")
    text, reasoning, calls = list[str](), list[str](), list[dict[str, Any]]()
    for part in content:
        if not isinstance(part, str | Mapping):
            raise BadRow(f"{where} has content other than text: {kind_of(part)}")
        if isinstance(part, str):
            part = {"text": part}
        kind = str(part.get("type", "text"))
        value = _first(part, kind, "text", "value")
        if kind == "tool_call":
            calls += _calls(value, where)
        elif kind in REASONING and isinstance(value, str):
            reasoning.append(value)
        elif kind in TEXTS and isinstance(value, str):
            text.append(value)
        else:
            raise BadRow(f"{where} has content other than text: a part of type {kind[:40]!r}")
    return "".join(text), "".join(reasoning), calls


# Calls


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls, or JSON of them, in OpenAI's envelope. Their arguments are an object: templates write
    it as JSON.
    """
    value = _json(value, where) if isinstance(value, str) else value
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list | tuple) or not calls:
        raise BadRow(
            f"{where}: a tool call must be {{name, arguments}} or a list of these, not "
            f"{kind_of(value)}"
        )
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool call must have a name, and arguments")
    arguments = _first(function, "arguments", "parameters")
    if isinstance(arguments, str):
        arguments = _json(arguments, where) if arguments.strip() else None
    if not isinstance(arguments, Mapping | None):
        raise BadRow(
            f"{where}: the arguments of the tool call {function['name']!r} must be an object"
        )
    read: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or {}},
    }
    return read | ({"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {})


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{where}: not valid JSON of a tool or a call: {text[:60]!r}") from error


# Columns of a row


class ColumnFormat(Format):
    """Base class of formats with conversations in their columns, in any layout of the module's
    table.
    """

    @staticmethod
    def margin(row: Mapping[str, Any], name: str = "margin") -> float | str | None:
        """A pair's margin: a number, or the name of a level; None if absent.

        Args:
            name: A column.
        """
        value = columns_of(row).get(name)
        return (
            value
            if value in LEVELS
            else to_number(value, f"column '{name}', unless one of {', '.join(LEVELS)},")
        )

    @staticmethod
    def conversation(value: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns of a column: a list of messages (OpenAI or ShareGPT), one message, JSON of
        these, or plain text.

        Plain text becomes one turn: the user's, or the assistant's if `user` is false.

        Args:
            value: What the column holds.
            name: A column.
            user: Whether plain text is the user's turn; else it is the assistant's.

        Raises:
            BadRow: For text that looks like messages and cannot be read.
        """
        if isinstance(value, str):
            value = _messages_in_cell(value, name, user)
        if isinstance(value, str):
            return (Message(role="user" if user else "assistant", content=value),)
        turns = [value] if isinstance(value, Mapping) else value
        if not isinstance(turns, list | tuple):
            raise BadRow(
                f"column '{name}' must be text or a list of messages, not {kind_of(value)}"
            )
        return tuple(read_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))

    @classmethod
    def opened(cls, turns: Sequence[Message], row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The turns, after the system message that one of SYSTEM_COLUMNS holds.

        Args:
            turns: Of a conversation, in order.
        """
        words = {text for name in SYSTEM_COLUMNS if (text := cls.text(row, name, "").strip())}
        if not words or not turns:
            return tuple(turns)
        own = {turns[0]["content"].strip()} if turns[0]["role"] == "system" else set()
        if len(words | own) > 1:
            raise BadRow(
                f"the row has {len(words | own)} different system messages, but a conversation "
                "has one"
            )
        return tuple(turns) if own else (Message(role="system", content=words.pop()), *turns)

    @classmethod
    def label(cls, row: Mapping[str, Any]) -> bool | None:
        """Whether the row's answer is good, by one of LABEL_COLUMNS; None if it does not say."""
        name = next((name for name in LABEL_COLUMNS if row.get(name) is not None), "label")
        try:
            return cls.flag(row, name)
        except BadRow as error:  # whether 1 or "safe" means good is for the user to say
            raise BadRow(
                f"{error}; write true for a good response, false for a bad one, nothing if unknown"
            ) from None

    @staticmethod
    def tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The functions in `tools`, or another usual column: a list of JSON schemas, or JSON text
        of one.
        """
        columns = columns_of(row)
        return tools_of(columns.get(tools_column(columns)))

    @staticmethod
    def answer(turns: Sequence[Message], **known: Any) -> Response:
        """A response from the turns after the prompt: text if it is one turn of text alone, else
        messages.

        Args:
            turns: Of a conversation, in order.
            known: Further fields of the response.
        """
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("the last turn must be an assistant turn")
        if turns[0]["role"] != "assistant":
            raise BadRow(
                "the first turn after the prompt must be an assistant turn, not a "
                f"{turns[0]['role']} turn"
            )
        if (
            len(turns) == 1
            and turns[0].keys() <= {"role", "content", "train"}
            and turns[0].get("train", True) is True
        ):
            return Response(text=turns[0]["content"], **known)
        return Response(messages=tuple(turns), **known)

    @classmethod
    def demonstration(
        cls, turns: Sequence[Message], **known: Any
    ) -> tuple[tuple[Message, ...], Response]:
        """Split a conversation before the first answer to the user, into prompt and response.

        A greeting of the assistant, before the user has spoken, is part of the prompt. A label
        belongs to the last answer, so that all other turns are part of the prompt.

        Args:
            turns: Of a conversation, in order.
            known: Further fields of the response.
        """
        roles = [turn["role"] for turn in turns]
        if "assistant" not in roles:
            raise BadRow("there is no assistant turn")
        if known.get("label") is not None:
            first = 1 + max(
                (place for place, role in enumerate(roles) if role != "assistant"), default=-1
            )
        else:
            spoken = roles.index("user") if "user" in roles else 0
            first = (
                spoken + roles[spoken:].index("assistant")
                if "assistant" in roles[spoken:]
                else len(roles)
            )
        return tuple(turns[:first]), cls.answer(turns[first:], **known)

    @staticmethod
    def scores(score: float | None) -> dict[str, float | None]:
        """The scores of a response that has one, or none.

        Args:
            score: A higher one is better.
        """
        return {} if score is None else {"reward": score}

    @staticmethod
    def pairs_by_score(responses: Sequence[Response]) -> tuple[Pair, ...]:
        """All pairs whose scores differ by more than rounding; the margin is the difference.

        Args:
            responses: With a score each.
        """
        scored = [
            (place, score)
            for place, r in enumerate(responses)
            if (score := r.scores.get("reward")) is not None
        ]
        if not scored:
            raise BadRow("the row has neither ranks nor scores nor pairs")
        if len(scored) < len(responses):
            raise BadRow(
                f"{len(responses) - len(scored)} of {len(responses)} responses have no score"
            )
        from alignkit import functional as F  # with torch, which reading a recipe does not need

        better = (
            (i, j, high - low)
            for i, high in scored
            for j, low in scored
            if F.preferred([(low, high)]) == [1]
        )
        return tuple(Pair(i, j, margin=margin) for i, j, margin in better)

    @staticmethod
    def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """As `Format.rest`. "tools" stands for the column that `tools` reads; choices that a
        question says are kept.
        """
        if "tools" in used:
            used = (*used, tools_column(columns_of(row)))
        choices = [name for name in CHOICES if columns_of(row).get(name) and name not in used]
        said = [name for name in choices if _says(row, used, row[name])]
        rest = Format.rest(row, *used, *said)
        return {name: value for name, value in row.items() if name in rest or name in said}


def _says(row: Mapping[str, Any], used: Iterable[str], choices: Any) -> bool:
    """Whether the columns that a format uses say all of the choices, as questions do that end with
    them.
    """
    words, said = list(words_in(choices)), "\n".join(words_in([row.get(name) for name in used]))
    return any(len(word) > 1 for word in words) and all(word in said for word in words)


def words_in(value: Any) -> Iterator[str]:
    """The texts and numbers in a value of JSON."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from words_in(inner)
    elif value is not None:
        yield str(value).strip()


# The beginning of a list of messages or of one message, as JSON or as Python prints it.
_MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*(['"])(role|from|content|value)\2\s*:""")
_SPEAKER = re.compile(r"""(['"])(role|from)\1\s*:""")


def _messages_in_cell(text: str, name: str, user: bool) -> Any:
    """The messages in a table's cell, if it holds JSON or Python's text of them; else the text
    unchanged.

    user: whether the user may speak. An answer may be data that somebody asked for, such as a
    message.
    """
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_value(text, name) if _MESSAGES.match(text) else text
    if isinstance(value, dict):  # one that is no message may be what the user asks about
        speaker = str(value.get("role", value.get("from"))).strip().lower()
        speaks = SPEAKERS.get(speaker) in (ROLES if user else ("assistant",))
        return (
            value if speaks and value.keys() in ({"role", "content"}, {"from", "value"}) else text
        )
    turns = value if isinstance(value, list) else []
    are_messages = turns and all(
        isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns
    )
    return turns if are_messages else text


def _python_value(text: str, name: str) -> Any:
    """The list that pandas wrote into a table as Python prints it. Raises BadRow for one as numpy
    prints it.
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.lstrip().startswith("[") and text.rstrip().endswith("}]") and _SPEAKER.search(text):
            raise BadRow(
                f"column '{name}' looks like messages but is not JSON; write it with json.dumps"
            ) from None
        return text
