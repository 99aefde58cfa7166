"""The base class of data formats, and the checks of every row that a format has read.

`Format.check` decides which rows are bad; a format may override it:

| the row has                                                          | it is      |
|----------------------------------------------------------------------|------------|
| no prompt or a blank last turn, if the format needs a prompt         | bad        |
| a prompt that ends with an assistant turn                            | bad        |
| a role other than system, user, assistant, tool                      | bad        |
| a NUL character or an unpaired surrogate in a text                   | bad        |
| demonstration: a blank response, or no turn that is learned          | bad        |
| comparison: both responses blank                                     | bad        |
| comparison: one response blank                                       | good: only the end of turn |
| comparison: responses that differ only in surrounding white space    | bad        |
| ranking: fewer than 2 responses, or a rank missing                   | bad        |
| a tie: of ranks, of scores, or by a label                            | good: ties make no pair |
| rank, label, margin or p of a wrong type; margin < 0 or not a level; p outside 0..1 | bad |
| a weight that is not a number of 0 or more                           | bad        |
| a turn of a weight other than 0 and 1, if it is no demonstration     | bad        |
| a pair of a response with itself, or with one that does not exist    | bad        |
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from sys import float_info
from typing import Any, ClassVar

from alignkit.data.conversations import SPEAKERS, read_message, tools_column, tools_of
from alignkit.data.files import kind_of
from alignkit.data.group import (
    LEVELS,
    ROLES,
    Group,
    Message,
    Pair,
    Response,
    check_indices,
    check_weights,
    every_turn,
    turns_of,
)
from alignkit.errors import BadRow, DataError
from alignkit.options import Options

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
LABEL_COLUMNS = ("label", "kto_tag")

# Columns with a meaning in other tools. A row that has one is read whole, or it is bad.
FOREIGN = {
    "history": "earlier turns",
    "image": "a picture",
    "images": "pictures",
    "video": "a film",
    "videos": "films",
    "audio": "a sound",
    "audios": "sounds",
    "functions": "tools, which `columns: {tools: functions}` reads",
    "choices": "the question's answers to choose from",
    "options": "the question's answers to choose from",
    "endings": "the question's answers to choose from",
    "mask": "which turns are learned",
    "train_detail": "which turns are learned",
    "chat_template_kwargs": "arguments of the chat template",
}

CHOICES = ("choices", "options", "endings")


class Format:
    """Base class of a data format: recognizes its rows (`matches`) and turns a row into a group (`read`).

    Attributes:
        wants: The columns it expects, for the error if rows match no format.
        example: A row as JSON.
        needs_prompt: False if a prompt may be empty, as in raw text.
        plain_text: .txt files may have this format without naming it.
        notes: What `rows` decided, in words, which a run prints and keeps.
    """

    Options: ClassVar[type[Options]] = Options
    wants: ClassVar[str] = ""
    example: ClassVar[str] = ""
    needs_prompt: ClassVar[bool] = True
    plain_text: ClassVar[bool] = False
    notes: Sequence[str] = ()

    def __init__(self, options: Any = None):
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def matches(cls, row: Any) -> bool:
        """Whether a row has this format, for recipes that name none. Must not raise."""
        return False

    def read(self, row: Any) -> Group:
        """The group of a row, which is JSON data and usually a dict. Raises `BadRow(reason)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define `read(row)`")

    def groups(self, row: Any) -> Iterable[Group]:
        """The groups of a row. Default: the one that `read` returns.

        Raises:
            BadRow: If there is none.
        """
        return (self.read(row),)

    def rows(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """All numbered rows of a source whose recipe names the format, for one that must see them together.

        A row that cannot be parsed is a `BadRow`. Default: as they are.

        Raises:
            BadRow: If options do not suit them.
        """
        return rows

    def check_columns(self, row: Any, columns: Mapping[str, str]) -> None:
        """Raise BadRow if renamed columns ({expected: actual}) would be misread next to the others of the row.

        Args:
            columns: {expected: actual}.
        """

    def reason(self, row: Any) -> str:
        """What made one response of a row the better one, such as `label 2`; empty if only the columns' names did."""
        return ""

    def check(self, group: Group) -> None:
        """Raise BadRow if the group cannot be used; see the table in the module's docstring."""
        check_group(group, needs_prompt=self.needs_prompt)

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """Cut a .txt file, given as numbered lines, into numbered rows. Default: every line that is not blank.

        Args:
            lines: Numbered from 1.
        """
        return ((number, line) for number, line in lines if line.strip())

    def rows_of_folder(self, folder: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows of a folder that a recipe names instead of a file.

        Raises:
            DataError: If it has none.
        """
        raise DataError(f"{folder}: this is a folder; name a file in it")

    # Helpers that read the columns of a row

    @staticmethod
    def has(row: Any, *names: str) -> bool:
        """Whether the row has all these columns, and none is null."""
        return isinstance(row, Mapping) and all(row.get(name) is not None for name in names)

    @staticmethod
    def lacks(row: Any, *names: str) -> bool:
        """Whether the row has none of these columns, or they are null."""
        return isinstance(row, Mapping) and all(row.get(name) is None for name in names)

    @staticmethod
    def text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
        """A column of text. If absent or null: `default`, or a bad row if there is no default.

        Args:
            name: A column.
            default: For a row without it; without one, the row is bad.
        """
        value = _columns(row).get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadRow(f"column '{name}' is missing" if name not in row else f"column '{name}' is null")
        if not isinstance(value, str):
            raise BadRow(f"column '{name}' must be text, not {kind_of(value)}")
        return value

    @staticmethod
    def flag(row: Mapping[str, Any], name: str) -> bool | None:
        """A column of true or false (words in csv); None if absent, null or an empty cell.

        Args:
            name: A column.
        """
        value = _columns(row).get(name)
        value = {"true": True, "false": False, "": None}.get(value.lower(), value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, bool):
            raise BadRow(f"column '{name}' must be true or false, not {value!r}")
        return value

    @staticmethod
    def number(row: Mapping[str, Any], name: str) -> float | None:
        """A column of numbers (digits in csv); None if absent, null or an empty cell.

        Args:
            name: A column.
        """
        return _to_number(_columns(row).get(name), f"column '{name}'")

    @staticmethod
    def margin(row: Mapping[str, Any], name: str = "margin") -> float | str | None:
        """A pair's margin: a number, or the name of a level; None if absent.

        Args:
            name: A column.
        """
        value = _columns(row).get(name)
        return value if value in LEVELS else _to_number(value, f"column '{name}'", f", or one of {', '.join(LEVELS)}")

    @staticmethod
    def conversation(value: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns of a column: a list of messages (OpenAI or ShareGPT), one message, JSON of these, or plain text.

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
            raise BadRow(f"column '{name}' must be text or a list of messages, not {kind_of(value)}")
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
            raise BadRow(f"the row has {len(words | own)} different system messages, but a conversation has one")
        return tuple(turns) if own else (Message(role="system", content=words.pop()), *turns)

    @classmethod
    def label(cls, row: Mapping[str, Any]) -> bool | None:
        """Whether the row's answer is good, by one of LABEL_COLUMNS; None if it does not say."""
        name = next((name for name in LABEL_COLUMNS if row.get(name) is not None), "label")
        try:
            return cls.flag(row, name)
        except BadRow as error:  # whether 1 or "safe" means good is for the user to say
            raise BadRow(f"{error}; write true for a good response, false for a bad one, nothing if unknown") from None

    @staticmethod
    def tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The functions in `tools`, or another usual column: a list of JSON schemas, or JSON text of one."""
        columns = _columns(row)
        return tools_of(columns.get(tools_column(columns)))

    @staticmethod
    def answer(turns: Sequence[Message], **known: Any) -> Response:
        """A response from the turns after the prompt: text if it is one turn of text alone, else messages.

        Args:
            turns: Of a conversation, in order.
            known: Further fields of the response.
        """
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("the last turn must be an assistant turn")
        if turns[0]["role"] != "assistant":
            raise BadRow(f"the first turn after the prompt must be an assistant turn, not a {turns[0]['role']} turn")
        if len(turns) == 1 and turns[0].keys() <= {"role", "content", "train"} and turns[0].get("train", True) is True:
            return Response(text=turns[0]["content"], **known)
        return Response(messages=tuple(turns), **known)

    @classmethod
    def demonstration(cls, turns: Sequence[Message], **known: Any) -> tuple[tuple[Message, ...], Response]:
        """Split a conversation before the first answer to the user, into prompt and response.

        A greeting of the assistant, before the user has spoken, is part of the prompt. A label belongs to the last
        answer, so that all other turns are part of the prompt.

        Args:
            turns: Of a conversation, in order.
            known: Further fields of the response.
        """
        roles = [turn["role"] for turn in turns]
        if "assistant" not in roles:
            raise BadRow("there is no assistant turn")
        if known.get("label") is not None:
            first = len(roles) - next(
                (back for back, role in enumerate(reversed(roles)) if role != "assistant"), len(roles)
            )
        else:
            spoken = roles.index("user") if "user" in roles else 0
            first = spoken + roles[spoken:].index("assistant") if "assistant" in roles[spoken:] else len(roles)
        return tuple(turns[:first]), cls.answer(turns[first:], **known)

    @staticmethod
    def pairs_by_score(responses: Sequence[Response]) -> tuple[Pair, ...]:
        """All pairs whose scores differ by more than rounding; the margin is the difference.

        Args:
            responses: With a score each.
        """
        scored = [(place, score) for place, r in enumerate(responses) if (score := r.scores.get("reward")) is not None]
        if not scored:
            raise BadRow("the row has neither ranks nor scores nor pairs")
        if len(scored) < len(responses):
            raise BadRow(f"{len(responses) - len(scored)} of {len(responses)} responses have no score")
        from alignkit import functional as F  # with torch, which reading a recipe does not need

        better = ((i, j, high - low) for i, high in scored for j, low in scored if F.preferred([(low, high)]) == [1])
        return tuple(Pair(i, j, margin=margin) for i, j, margin in better)

    @staticmethod
    def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """The columns that the format does not use; they become the group's `meta`.

        Args:
            used: Columns that the format uses.

        Raises:
            BadRow: For one that means something in other tools, which would be lost.
        """
        columns = _columns(row)
        read = {*used, tools_column(columns)} if "tools" in used else used
        unused = {name: value for name, value in columns.items() if name not in read}
        for name, meaning in FOREIGN.items():
            if unused.get(name) not in (None, "", [], {}) and not (name in CHOICES and _says(row, used, unused[name])):
                raise BadRow(
                    f"column '{name}' holds {meaning}, which this format would lose; if it means something else, "
                    f"rename it with `columns: {{other_{name}: {name}}}`"
                )
        return unused


def _columns(row: Any) -> Mapping[str, Any]:
    """The row, if it has columns."""
    if not isinstance(row, Mapping):
        raise BadRow(f"a row must be an object with columns, not {kind_of(row)}")
    return row


def _says(row: Mapping[str, Any], used: Iterable[str], choices: Any) -> bool:
    """Whether the columns that a format uses say all of the choices, as questions do that end with them."""
    words, said = list(_words(choices)), "\n".join(_words([row.get(name) for name in used]))
    return any(len(word) > 1 for word in words) and all(word in said for word in words)


def _words(value: Any) -> Iterator[str]:
    """The texts and numbers in a value of JSON."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _words(inner)
    elif value is not None:
        yield str(value).strip()


def _to_number(value: Any, what: str, also: str = "") -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRow(f"{what} must be a number{also}, not {value!r}") from None
    _check_number(value, what, also)
    return float(value)


# The beginning of a list of messages or of one message, as JSON or as Python prints it.
_MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*(['"])(role|from|content|value)\2\s*:""")
_SPEAKER = re.compile(r"""(['"])(role|from)\1\s*:""")


def _messages_in_cell(text: str, name: str, user: bool) -> Any:
    """The messages in a table's cell, if it holds JSON or Python's text of them; else the text unchanged.

    user: whether the user may speak. An answer may be data that somebody asked for, such as a message.
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
        return value if speaks and value.keys() in ({"role", "content"}, {"from", "value"}) else text
    turns = value if isinstance(value, list) else []
    are_messages = turns and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns)
    return turns if are_messages else text


def _python_value(text: str, name: str) -> Any:
    """The list that pandas wrote into a table as Python prints it. Raises BadRow for one as numpy prints it."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.lstrip().startswith("[") and text.rstrip().endswith("}]") and _SPEAKER.search(text):
            raise BadRow(f"column '{name}' looks like messages but is not JSON; write it with json.dumps") from None
        return text


# Checks


def check_group(group: Group, *, needs_prompt: bool = True) -> None:
    """Raise BadRow if the group cannot be used; see the table in the module's docstring."""
    for message in group.prompt:
        _check_message(message)
    for response in group.responses:
        _check_response(response)
    check_weights(group)
    compared = len(group.responses) > 1 or any(one.label is not None or one.scores for one in group.responses)
    if compared and any(not isinstance(turn.get("train", True), bool) for turn in every_turn(group)):
        raise BadRow("only demonstrations have turns of a weight other than 0 and 1; to weigh a row, use 'weight'")
    if needs_prompt and not group.prompt:
        raise BadRow("there is no prompt")
    if needs_prompt and group.prompt[-1]["role"] != "tool" and not group.prompt[-1]["content"].strip():
        raise BadRow("the last turn of the prompt is empty")
    if group.prompt and group.prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt must not end with an assistant turn")
    if group.pairs is not None:
        for pair in group.pairs:
            _check_pair(pair, group.responses)
    elif any(response.rank is not None for response in group.responses):
        _check_ranks(group.responses)
    elif any(_blank(response) for response in group.responses):
        raise BadRow("the response is empty")


def _check_message(message: Message) -> None:
    if message.get("role") not in ROLES:
        raise BadRow(f"unknown role {message.get('role')!r}; expected one of {', '.join(ROLES)}")
    for name in ("content", "reasoning_content", "name", "tool_call_id"):
        _check_words(message.get(name, ""))
    if "tool_calls" in message:
        _check_words(json.dumps(message["tool_calls"], ensure_ascii=False))


def _check_words(text: Any) -> None:
    if not isinstance(text, str):
        raise BadRow(f"expected text, not {kind_of(text)}")
    if "\0" in text:
        raise BadRow("a text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("a text contains an unpaired surrogate, which is not valid Unicode") from error


def _check_response(response: Response) -> None:
    _check_words(response.text)
    for message in response.messages or ():
        _check_message(message)
    if response.messages is not None and not any(_learned(message) for message in response.messages):
        raise BadRow("no assistant turn can be learned: each is empty or has train: false")
    if response.label is not None and not isinstance(response.label, bool):
        raise BadRow(f"label must be true or false, not {response.label!r}")
    if response.rank is not None:
        _check_number(response.rank, "rank")


def _learned(message: Message) -> bool:
    says = bool(message["content"].strip() or message.get("tool_calls"))
    return message["role"] == "assistant" and bool(message.get("train", True)) and says


def text_of(response: Response) -> Any:
    """The response's text or turns, for comparison: without surrounding white space."""
    return response.text.strip() if response.messages is None else turns_of(response.messages)


def _blank(response: Response) -> bool:
    return not text_of(response)


def _check_pair(pair: Pair, responses: Sequence[Response]) -> None:
    check_indices(pair, len(responses))
    better, worse = text_of(responses[pair.better]), text_of(responses[pair.worse])
    if not better and not worse:
        raise BadRow("both responses are empty")
    if better == worse:
        raise BadRow("the better and the worse response are the same")
    _check_number(pair.p, "p")
    if not 0 <= pair.p <= 1:
        raise BadRow(f"p must be between 0 and 1, not {pair.p!r}")
    if pair.margin is None or pair.margin in LEVELS:
        return
    _check_number(pair.margin, "margin", f", or one of {', '.join(LEVELS)}")
    if isinstance(pair.margin, float | int) and pair.margin < 0:
        raise BadRow(f"margin must not be negative: {pair.margin!r}")


def _check_number(value: Any, what: str, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= float_info.max:
        raise BadRow(f"{what} must be a number{also}, not {value!r}")


def _check_ranks(responses: Sequence[Response]) -> None:
    if len(responses) < 2:
        raise BadRow("a ranking needs at least 2 responses")
    missing = [str(index) for index, response in enumerate(responses) if response.rank is None]
    if missing:
        raise BadRow(f"responses without a rank, counted from 0: {', '.join(missing)}")
    if all(_blank(response) for response in responses):
        raise BadRow("all responses are empty")
