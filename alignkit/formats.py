"""The base class of data formats, and the checks that every row goes through after a format has read it.

What the checks make of a row (`Format.check`, which a format may override):

| found                                                                | the row is |
|----------------------------------------------------------------------|------------|
| no prompt, or its last turn is blank, where the format needs one     | bad        |
| prompt ends with the assistant's turn                                | bad        |
| a role other than system, user, assistant                            | bad        |
| NUL or half a surrogate pair in a text                               | bad        |
| demonstration: blank response, or none of its turns is learned       | bad        |
| comparison: both responses blank                                     | bad        |
| comparison: one response blank                                       | kept: it is the end of turn alone |
| comparison: responses equal but for white space around them          | bad        |
| ranking: fewer than 2 responses, a rank missing, all ranks tied      | bad        |
| ranking: some ranks tied                                             | kept: ties give no pair |
| rank, label, margin or p of a wrong type; margin < 0 or not a level; p outside 0..1 | bad |
| a pair that names a response that is not there, or itself            | bad        |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from alignkit.data.files import kind_of
from alignkit.data.group import LEVELS, ROLES, Group, Message, Pair, Response, check_indices, turns_of
from alignkit.errors import BadRow
from alignkit.options import Options


class Format:
    """Base class of a data format: says which rows are its own (`matches`) and turns one into a group (`read`).

    summary: one line. wants: the columns it looks for, told to a user whose rows match no format.
    needs_prompt: false where an empty prompt is right (raw text). plain_text: it may be chosen for a .txt file
    without being named.
    """

    Options: ClassVar[type[Options]] = Options
    summary: ClassVar[str] = ""
    wants: ClassVar[str] = ""
    needs_prompt: ClassVar[bool] = True
    plain_text: ClassVar[bool] = False

    def __init__(self, options: Any = None):
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def matches(cls, row: Any) -> bool:
        """Whether a row looks like this format's, for a recipe that does not name one. Must not raise."""
        return False

    def read(self, row: Any) -> Group:
        """The group of a row (what JSON can hold, mostly a dict); raises `BadRow(reason)`."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Raises `BadRow` for a group that cannot be used; see the table in the module's docstring."""
        check_group(group, needs_prompt=self.needs_prompt)

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """Cuts a .txt file, given as numbered lines, into numbered rows. Default: a line is a row, blank ones none."""
        return ((number, line) for number, line in lines if line.strip())

    # What most formats need to take a row apart.

    @staticmethod
    def has(row: Any, *names: str) -> bool:
        """Whether the row is an object with all these columns, none of them null."""
        return isinstance(row, Mapping) and all(row.get(name) is not None for name in names)

    @staticmethod
    def lacks(row: Any, *names: str) -> bool:
        """Whether the row has none of these columns, or only null in them."""
        return isinstance(row, Mapping) and all(row.get(name) is None for name in names)

    @staticmethod
    def text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
        """A column of text; absent or null: `default`, or a bad row where that is None."""
        value = row.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadRow(f"column '{name}' is missing" if name not in row else f"column '{name}' is null")
        if not isinstance(value, str):
            raise BadRow(f"column '{name}' must be text, not {kind_of(value)}")
        return value

    @staticmethod
    def flag(row: Mapping[str, Any], name: str) -> bool | None:
        """A column of true or false (csv: the words); None where it is absent, null or an empty cell."""
        value = row.get(name)
        value = {"true": True, "false": False, "": None}.get(value.lower(), value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, bool):
            raise BadRow(f"column '{name}' must be true or false, not {value!r}")
        return value

    @staticmethod
    def number(row: Mapping[str, Any], name: str) -> float | None:
        """A column of numbers (csv: their digits); None where it is absent, null or an empty cell."""
        return _to_number(row.get(name), f"column '{name}'")

    @staticmethod
    def margin(row: Mapping[str, Any], name: str = "margin") -> float | str | None:
        """A pair's margin: a number, or the name of a level; None where it is absent."""
        value = row.get(name)
        return value if value in LEVELS else _to_number(value, f"column '{name}'", f", or one of {', '.join(LEVELS)}")

    @staticmethod
    def conversation(value: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """Turns from a list of messages (OpenAI or ShareGPT), one message, either as JSON text, or plain text.

        Plain text is the turn of the user, or of the assistant where `user` is false.
        """
        if isinstance(value, str):
            value = _messages_in_cell(value)
        if isinstance(value, str):
            return (Message(role="user" if user else "assistant", content=value),)
        turns = [value] if isinstance(value, Mapping) else value
        if not isinstance(turns, list | tuple):
            raise BadRow(f"column '{name}' must be text or a list of messages, not {kind_of(value)}")
        return tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))

    @staticmethod
    def answer(turns: Sequence[Message], **known: Any) -> Response:
        """A response from the turns after the prompt: one turn becomes its text, several stay messages."""
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("the last turn must be the assistant's")
        if turns[0]["role"] != "assistant":
            raise BadRow(f"the first turn after the prompt must be the assistant's, not the {turns[0]['role']}'s")
        if len(turns) == 1 and turns[0].get("train", True):
            return Response(text=turns[0]["content"], **known)
        return Response(messages=tuple(turns), **known)

    @classmethod
    def demonstration(cls, turns: Sequence[Message], **known: Any) -> tuple[tuple[Message, ...], Response]:
        """Splits a conversation before its first assistant turn: what is asked, and what is answered."""
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), None)
        if first is None:
            raise BadRow("there is no assistant turn")
        return tuple(turns[:first]), cls.answer(turns[first:], **known)

    @staticmethod
    def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """The columns that the format did not use; they become the group's `meta`."""
        return {name: value for name, value in row.items() if name not in used}


_SPEAKERS = {"human": "user", "gpt": "assistant", "prompter": "user"} | {role: role for role in ROLES}


def _message(turn: Any, where: str) -> Message:
    """A message from {role, content} or ShareGPT's {from, value}."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be a message, not {kind_of(turn)}")
    speaker = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(f"{where} has the unknown role {speaker!r}; known are {', '.join(_SPEAKERS)}")
    content = turn.get("content", turn.get("value"))
    if content is None and turn.get("tool_calls"):
        raise BadRow(f"{where} is a tool call; only turns of text can be read")
    message = Message(role=role, content=_content(content, where))
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"{where}: train must be true or false, not {train!r}")
    if train is not None:
        message["train"] = train
    return message


def _content(content: Any, where: str) -> str:
    """A message's words: text, or a list of text parts, joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRow(f"{where} has no text: its content is {kind_of(content)}")
    texts = [_part(part, where) for part in content]
    return "".join(texts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
    raise BadRow(f"{where} has a part that is not text: {str(part)[:60]}")


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


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _messages_in_cell(text: str) -> Any:
    """The list of messages that a cell of a table holds as JSON; any other text stays what it is."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    are_messages = bool(value) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value)
    return value if are_messages else text


# Checks


def check_group(group: Group, *, needs_prompt: bool = True) -> None:
    """Raises `BadRow` for a group that cannot be used; see the table in the module's docstring."""
    for message in group.prompt:
        _check_message(message)
    for response in group.responses:
        _check_response(response)
    if needs_prompt and not (group.prompt and group.prompt[-1]["content"].strip()):
        raise BadRow("the last turn of the prompt is empty" if group.prompt else "there is no prompt")
    if group.prompt and group.prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with the assistant's turn")
    if group.pairs is not None:
        _check_pairs(group)
    elif any(response.rank is not None for response in group.responses):
        _check_ranks(group.responses)
    elif any(_blank(response) for response in group.responses):
        raise BadRow("the response is empty")


def _check_message(message: Message) -> None:
    if message.get("role") not in ROLES:
        raise BadRow(f"unknown role {message.get('role')!r}; known are {', '.join(ROLES)}")
    _check_words(message["content"])


def _check_words(text: Any) -> None:
    if not isinstance(text, str):
        raise BadRow(f"a text is {kind_of(text)}")
    if "\0" in text:
        raise BadRow("a text has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("a text has half a surrogate pair (not valid Unicode)") from error


def _check_response(response: Response) -> None:
    _check_words(response.text)
    for message in response.messages or ():
        _check_message(message)
    if response.messages is not None and not any(_learned(message) for message in response.messages):
        raise BadRow("no assistant turn is learned: each is empty or has train: false")
    if response.label is not None and not isinstance(response.label, bool):
        raise BadRow(f"label must be true or false, not {response.label!r}")
    if response.rank is not None:
        _check_number(response.rank, "rank")


def _learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train", True) and bool(message["content"].strip())


def said(response: Response) -> Any:
    """What tells one response from another: its words, without white space around them."""
    return response.text.strip() if response.messages is None else turns_of(response.messages)


def _blank(response: Response) -> bool:
    return not said(response)


def _check_pairs(group: Group) -> None:
    for pair in group.pairs or ():
        _check_pair(pair, group.responses)


def _check_pair(pair: Pair, responses: Sequence[Response]) -> None:
    check_indices(pair, len(responses))
    better, worse = said(responses[pair.better]), said(responses[pair.worse])
    if not better and not worse:
        raise BadRow("both responses are empty")
    if better == worse:
        raise BadRow("the better and the worse response are equal")
    _check_number(pair.p, "p")
    if not 0 <= pair.p <= 1:
        raise BadRow(f"p must be between 0 and 1, not {pair.p!r}")
    if pair.margin is None or pair.margin in LEVELS:
        return
    _check_number(pair.margin, "margin", f", or one of {', '.join(LEVELS)}")
    if isinstance(pair.margin, float | int) and pair.margin < 0:
        raise BadRow(f"margin must not be negative: {pair.margin!r}")


def _check_number(value: Any, what: str, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise BadRow(f"{what} must be a number{also}, not {value!r}")


def _check_ranks(responses: Sequence[Response]) -> None:
    if len(responses) < 2:
        raise BadRow("a ranking needs at least 2 responses")
    missing = [str(index) for index, response in enumerate(responses) if response.rank is None]
    if missing:
        raise BadRow(f"responses without a rank (counted from 0): {', '.join(missing)}")
    if len({response.rank for response in responses}) == 1:
        raise BadRow("all ranks are tied")
    if all(_blank(response) for response in responses):
        raise BadRow("all responses are empty")
