"""Columns with conversations as data sets store them: OpenAI's, ShareGPT's, axolotl's and
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

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.contract.formats import columns_of, renamed, to_number
from alignkit.data.files import Twice, kind_of, parse
from alignkit.data.group import LEVELS, ROLES, user_turn

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
LABEL_COLUMNS = ("label", "kto_tag")
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
# A list of messages or one message, as Python prints it.
_MESSAGES = re.compile(r"""\s*\[?\s*\{.*(['"])(role|from)\1\s*:.*\}\s*\]?\s*""", re.DOTALL)


def with_text(row: Any, name: str = "text") -> Mapping[str, Any]:
    """A row, which may be the text of one column. Raises BadRow for anything else."""
    return columns_of({name: row} if isinstance(row, str) else row)


def first_of(row: Any, names: Iterable[str]) -> str:
    """The first of these columns that a row has; empty if it has none."""
    return next((name for name in names if Format.has(row, name)), "")


def only_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these columns that says something, else the first that a row has. Raises BadRow if
    two of them say different things.
    """
    row = columns_of(row)
    said = [name for name in names if row.get(name) not in NOTHING]
    if len(said) > 1 and len({str(row[name]).lower() for name in said}) > 1:
        raise BadRow(f"{' and '.join(said)} contradict each other; rename one of them")
    return next(iter(said), first_of(row, names))


def check_one(row: Mapping[str, Any], name: str, prompt: str) -> None:
    """Raise BadRow for a column that holds two answers, with the line that reads them. prompt: of a
    template.
    """
    answers = row.get(name)
    if isinstance(answers, list) and list(map(type, answers)) == [str, str]:
        raise BadRow(
            f"column '{name}' has two answers; if the first is the better one, write `data: "
            f'{{template: {{path: FILE, prompt: "{prompt}", chosen: "{{{{ {name}[0] }}}}", '
            f'rejected: "{{{{ {name}[1] }}}}"}}}}`'
        )


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
            f"{', '.join(SPEAKERS)}"
        )
    content = turn.get("content")
    if turn.keys() <= PLAIN and name not in CALLERS and isinstance(content, str):
        return Message(role=role, content=content)  # nearly all turns; several times as fast
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


# Content and calls


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


# Columns that rate two answers

_WORD = re.compile(r"[A-Za-z]+|\d+")
_RATING = re.compile(
    "(?i:score|rating|reward|grade|(up)?votes|rank|avg|average|mean|overall|final)"
)
_NAMED = ("better", "best", "winner", "preferred", "preference", "verdict", "label", "status")
_TIE = re.compile(r"(?i)ties?|tied|draw|equal|same|(?:tie\W+)?both[\W_]*(?:bad|good)\W*")


def rated_alike(row: Mapping[str, Any], better: str, worse: str) -> bool:
    """Whether two answers have the same rating, or a column calls them a tie. Raises BadRow if one
    says that the worse answer is better.

    better, worse: the columns of the answers. Ratings are called alike, such as score_chosen for
    chosen.
    """
    alike = any(_TIE.fullmatch(str(row.get(name)).strip()) for name in _NAMED)
    against = [name for name in _NAMED if str(row.get(name)).lower() == worse]
    for name, ratings in row.items():
        if _RATING.fullmatch(name.removesuffix("s")) and isinstance(ratings, list):
            alike |= len(ratings) == 2 and ratings[0] == ratings[1] is not None
        pair = name, _twin(name, better, worse)
        with suppress(BadRow):  # ratings may be in words
            high, low = (to_number(row.get(each), each) for each in pair)
            if high is None or low is None:
                continue
            alike |= high == low
            if high != low and (high < low) != ("rank" in name.lower()):  # the best has rank 1
                against.append(f"{name} {high:g} and {pair[1]} {low:g}")
    if against:
        raise BadRow(f"{' and '.join(against)} contradict that the {better} answer is better")
    return alike


@cache
def _twin(name: str, better: str, worse: str) -> str:
    """The column that rates the worse answer, of the one that rates the better; empty if that is
    none.
    """
    words = [_WORD.findall(column) for column in (better, worse, name)]
    one, other = next(pair for pair in zip(*words[:2], strict=False) if pair[0] != pair[1])
    others = [word for word in words[2] if word != one]
    if len(words[2]) - len(others) != 1 or not others or not all(map(_RATING.fullmatch, others)):
        return ""
    return _WORD.sub(lambda word: other if word[0] == one else word[0], name)


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


# Columns of a row


class ColumnFormat(Format):
    """Base class of formats with conversations in their columns, in any layout of the module's
    table.
    """

    def group(
        self,
        row: Mapping[str, Any],
        used: Sequence[str],
        prompt: Sequence[Message],
        responses: Sequence[Response] = (),
        pairs: tuple[Pair, ...] | None = None,
    ) -> Group:
        """The group of a row, with the system message and the tools that the row has.

        Args:
            row: Its columns.
            used: Columns whose content is in the prompt and the responses; the others become
                `meta`.
            prompt: The turns before the responses.
            responses: To the prompt.
            pairs: Pairs of the responses; None derives them from their ranks.
        """
        meta = self.rest(row, *used, *SYSTEM_COLUMNS, "tools")
        return Group(
            self.opened(prompt, row), tuple(responses), pairs, meta=meta, tools=self.tools(row)
        )

    @classmethod
    def column(cls, row: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns in a column of a row, as `conversation` reads them.

        Args:
            row: Its columns.
            name: A column.
            user: Whether plain text is the user's turn; else it is the assistant's.

        Raises:
            BadRow: Also for a column that is missing.
        """
        if columns_of(row).get(name) is None:
            raise BadRow(f"column '{name}' is missing or null")
        return cls.conversation(row[name], name, user)

    @classmethod
    def joined(cls, row: Mapping[str, Any], names: Iterable[str]) -> tuple[Message, ...]:
        """One turn of the user: the texts of some columns, with a blank line between them.

        Args:
            row: Its columns.
            names: Columns, which may be missing or blank.
        """
        parts = [cls.text(row, name, "").strip() for name in names]
        return (user_turn("\n\n".join(filter(None, parts))),)

    @staticmethod
    def margin(row: Mapping[str, Any]) -> float | str | None:
        """A pair's margin: a number, or the name of a level; None if absent.

        Args:
            row: Its columns.
        """
        value = columns_of(row).get("margin")
        if value in LEVELS:
            return str(value)
        return to_number(value, f"column 'margin', unless one of {', '.join(LEVELS)},")

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
            value = {"role": "user" if user else "assistant", "content": value}
        turns = value
        if isinstance(value, Mapping):
            turns = [value]
        if not isinstance(turns, list | tuple):
            raise BadRow(
                f"column '{name}' must be text or a list of messages, not {kind_of(value)}"
            )
        return tuple(read_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))

    @classmethod
    def opened(cls, turns: Sequence[Message], row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The turns, after the system message that one of SYSTEM_COLUMNS holds.

        Args:
            turns: A conversation's, in order.
            row: Its columns.
        """
        words = {cls.text(row, name, "").strip() for name in SYSTEM_COLUMNS} - {""}
        if not words or not turns:
            return tuple(turns)
        is_opened = turns[0]["role"] == "system"
        if is_opened:
            words.add(turns[0]["content"].strip())
        if len(words) > 1:
            raise BadRow(
                f"the row has {len(words)} different system messages, but a conversation has one"
            )
        return tuple(turns) if is_opened else (Message(role="system", content=words.pop()), *turns)

    @classmethod
    def label(cls, row: Mapping[str, Any]) -> bool | None:
        """Whether the row's answer is good, by one of LABEL_COLUMNS; None if it does not say."""
        name = only_of(row, LABEL_COLUMNS) or "label"
        try:
            return cls.flag(row, name)
        except BadRow as error:
            text = f"{error}; write true for a good response, or {renamed(name)}"
            raise BadRow(text) from None

    @staticmethod
    def tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The functions in `tools`: a list of JSON schemas, or JSON text of one."""
        return tools_of(columns_of(row).get("tools"))

    @staticmethod
    def answer(turns: Sequence[Message], **fields: Any) -> Response:
        """A response from the turns after the prompt: text if it is one turn of text alone, else
        messages.

        Args:
            turns: A conversation's, in order.
            fields: Further fields of the response.
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
            return Response(text=turns[0]["content"], **fields)
        return Response(messages=tuple(turns), **fields)

    @classmethod
    def demonstration(
        cls, turns: Sequence[Message], **fields: Any
    ) -> tuple[tuple[Message, ...], Response]:
        """Split a conversation before the first answer to the user, into prompt and response.

        A greeting of the assistant, before the user has spoken, is part of the prompt. A label
        belongs to the last answer, so that all other turns are part of the prompt.

        Args:
            turns: A conversation's, in order.
            fields: Further fields of the response.
        """
        roles = [turn["role"] for turn in turns]
        if "assistant" not in roles:
            raise BadRow("there is no assistant turn")
        first = len(roles)
        if fields.get("label") is not None:
            while first and roles[first - 1] == "assistant":
                first -= 1
        else:
            start = 0
            if "user" in roles:
                start = roles.index("user")
            if "assistant" in roles[start:]:
                first = roles.index("assistant", start)
        return tuple(turns[:first]), cls.answer(turns[first:], **fields)

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
        scores = []
        for response in responses:
            score = response.scores.get("reward")
            if score is not None:
                scores.append(score)
        if not scores:
            raise BadRow("the row has neither ranks nor scores nor pairs")
        missing = len(responses) - len(scores)
        if missing:
            raise BadRow(f"{missing} of {len(responses)} responses have no score")
        from alignkit import functional as F  # with torch, which reading a recipe does not need

        pairs = []
        for i, high in enumerate(scores):
            for j, low in enumerate(scores):
                if F.preferred([(low, high)]) == [1]:
                    pairs.append(Pair(i, j, margin=high - low))
        return tuple(pairs)


def _messages_in_cell(text: str, name: str, user: bool) -> Any:
    """The messages in a table's cell, if it holds JSON or Python's text of them; else the text
    unchanged.

    user: whether the user may speak. An answer may be data that somebody asked for, such as a
    message.
    """
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = parse(text)
    except BadRow as error:
        is_message = _MESSAGES.fullmatch(text)
        if is_message and isinstance(error, Twice):
            raise BadRow(f"column '{name}': a message {error}") from error
        value = _python_value(text, name) if is_message else None
    if isinstance(value, dict):  # one that is no message may be what the user asks about
        speaker = str(value.get("role", value.get("from"))).strip().lower()
        speaks = SPEAKERS.get(speaker) in (ROLES if user else ("assistant",))
        return value if speaks and value.keys() in (PLAIN, {"from", "value"}) else text
    turns = value if isinstance(value, list) else []
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys():
            return text
    return turns or text


def _python_value(text: str, name: str) -> Any:
    """The list that pandas wrote into a table as Python prints it. Raises BadRow for one as numpy
    prints it.
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.lstrip().startswith("["):
            raise BadRow(
                f"column '{name}' looks like messages but is not JSON; write it with json.dumps"
            ) from None
        return None
