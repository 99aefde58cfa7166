"""The base class of data formats, and the checks of every row that a format has read.

`Format.check` decides which rows are bad; a format may override it:

| the row has                                                       | it is                      |
|-------------------------------------------------------------------|----------------------------|
| no prompt or a blank last turn, if the format needs a prompt      | bad                        |
| a prompt that ends with an assistant turn                         | bad                        |
| a role other than system, user, assistant, tool                   | bad                        |
| a NUL character or invalid Unicode in a text                      | bad                        |
| demonstration: a blank response, or no turn that is learned       | bad                        |
| comparison: both responses blank                                  | bad                        |
| comparison: one response blank                                    | good: only the end of turn |
| comparison: responses that differ only in how they are typed      | bad                        |
| ranking: fewer than 2 responses, or a rank missing                | bad                        |
| a tie: of ranks, of scores, or by a label                         | good: ties make no pair    |
| a rank, label, margin or p of a wrong type                        | bad                        |
| a margin that is negative or no level; p outside 0..1             | bad                        |
| a weight that is not a number of 0 or more                        | bad                        |
| a turn of a weight other than 0 and 1, if it is no demonstration  | bad                        |
| a pair of a response with itself, or with one that does not exist | bad                        |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from alignkit.contract.options import Options
from alignkit.data.files import kind_of
from alignkit.data.group import (
    LARGEST,
    LEVELS,
    ROLES,
    Group,
    Message,
    Pair,
    Response,
    check_indices,
    check_weights,
    every_turn,
    resolved_pairs,
    turns_of,
)
from alignkit.errors import BadRow, DataError
from alignkit.io.text import typed

# Columns with a meaning in other tools. A row that has one is read whole, or it is bad.
FOREIGN = (
    "history",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    *("functions", "tool_defs", "tool_schemas", "available_tools"),  # tools
    "choices",
    "options",
    "endings",
    "mask",
    "train_detail",
    "chat_template_kwargs",
    "sample_weight",
    "loss_weight",
)


class Format:
    """Base class of a data format: recognizes its rows (`matches`) and turns a row into a group
    (`read`).

    Attributes:
        wants: The columns it expects, for the error if rows match no format.
        example: A row as JSON.
        needs_prompt: False if a prompt may be empty, as in raw text.
        plain_text: .txt files may have this format without naming it.
        notes: What `rows` decided, in words, which a run prints and keeps.
        renamed: The source's `columns`: names in the file by those that `read` gets.
    """

    Options: ClassVar[type[Options]] = Options
    wants: ClassVar[str] = ""
    example: ClassVar[str] = ""
    needs_prompt: ClassVar[bool] = True
    plain_text: ClassVar[bool] = False
    notes: Sequence[str] = ()
    renamed: Mapping[str, str] = {}

    def __init__(self, options: Any = None):
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def matches(cls, row: Any) -> bool:
        """Whether a row has this format, for recipes that name none. Must not raise."""
        return False

    def read(self, row: Any) -> Group:
        """The group of a row, which is JSON data and usually a dict. Raises `BadRow(reason)`."""
        raise NotImplementedError

    def groups(self, row: Any) -> Iterable[Group]:
        """The groups of a row. Default: the one that `read` returns.

        Raises:
            BadRow: If there is none.
        """
        return (self.read(row),)

    def asks(self, row: Any) -> str:
        """What a row asks, if the prompt that `read` makes has words of its own, too: so the same
        rows are held out in any words. Default: nothing, and what the user says first decides.
        """
        return ""

    def rows(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """All numbered rows of a source, for a format that must see them together, or makes several
        rows of one.

        Their columns have the names of the file. A row that cannot be parsed is a `BadRow`.
        Default: as they are.

        Raises:
            BadRow: If options do not suit them.
        """
        return rows

    def check(self, group: Group) -> None:
        """Raise BadRow if the group cannot be used; see the table in the module's docstring."""
        check_group(group, needs_prompt=self.needs_prompt)

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """Cut a .txt file, given as numbered lines, into numbered rows. Default: every line that is
        not blank.

        Args:
            lines: Numbered from 1.
        """
        return ((number, line) for number, line in lines if line.strip())

    def rows_of_folder(self, folder: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows of a folder that a recipe names instead of a file.

        Raises:
            DataError: If it has none.
        """
        raise DataError(
            f"{folder}: this is a folder; name a file in it, or a format that reads folders, as in "
            "`data: {text: FOLDER}`"
        )

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
        value = columns_of(row).get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadRow(f"column '{name}' is missing or null")
        if not isinstance(value, str):
            raise BadRow(f"column '{name}' must be text, not {kind_of(value)}")
        return value

    @staticmethod
    def flag(row: Mapping[str, Any], name: str) -> bool | None:
        """A column of true or false (words in csv); None if absent, null or an empty cell.

        Args:
            name: A column.
        """
        value = columns_of(row).get(name)
        words = {"true": True, "false": False, "": None, "none": None}
        if str(value).lower() not in words:
            raise BadRow(f"column '{name}' must be true or false, not {value!r}")
        return words[str(value).lower()]

    @staticmethod
    def number(row: Mapping[str, Any], name: str) -> float | None:
        """A column of numbers (digits in csv); None if absent, null or an empty cell.

        Args:
            name: A column.
        """
        return to_number(columns_of(row).get(name), f"column '{name}'")

    @staticmethod
    def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """The columns that the format does not use; they become the group's `meta`.

        Args:
            used: Columns that the format uses.

        Raises:
            BadRow: For one that means something in other tools, which would be lost.
        """
        unused = {name: value for name, value in columns_of(row).items() if name not in used}
        for name in FOREIGN:
            if unused.get(name) not in (None, "", [], {}):
                raise BadRow(
                    f"column '{name}' means something in other tools, which this format would "
                    f"lose; say which column it is, as in `columns: {{COLUMN: {name}}}`, or "
                    f"{renamed(name)}"
                )
        return unused


def renamed(name: str) -> str:
    """What to do about a column that means something else."""
    return f"rename a column of another meaning: `columns: {{other_{name}: {name}}}`"


def columns_of(row: Any) -> Mapping[str, Any]:
    """The row, if it has columns."""
    if not isinstance(row, Mapping):
        raise BadRow(f"a row must be an object with columns, not {kind_of(row)}")
    return row


def with_renamed_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with the column names that the format expects. columns: expected -> actual."""
    if not columns:
        return row
    for actual in columns.values():
        if actual not in columns_of(row):
            raise BadRow(f"no column '{actual}' to rename; the row has {', '.join(row)}")
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return others | {expected: row[actual] for expected, actual in columns.items()}


def to_number(value: Any, what: str) -> float | None:
    """A value of a table as a finite number; None if it is empty. what: for the message."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not abs(number) <= LARGEST:
        reason = ", which is too large" if abs(number) > LARGEST else ""
        raise BadRow(f"{what} must be a number, not {value!r}{reason}")
    return number


# Rows

Formats = Mapping[str, type[Format]]  # by name


def matches(format_class: type[Format], row: Any) -> bool:
    """Whether a format recognizes a row."""
    try:
        return format_class.matches(row)
    except Exception:  # a plugin that fails on a foreign row does not match it
        return False


def checked_groups(format: Format, row: Any) -> list[Group]:
    """The groups that a format reads from a row. Raises `BadRow` for a bad one."""
    groups = list(format.groups(row))
    for group in groups:
        if not isinstance(group, Group):
            raise TypeError(f"`read` must return a Group, not {type(group).__name__}")
        format.check(group)
    return groups


# Checks


def check_group(group: Group, *, needs_prompt: bool = True) -> None:
    """Raise BadRow if the group cannot be used; see the table in the module's docstring."""
    for turn in every_turn(group):
        if turn.get("role") not in ROLES:
            raise BadRow(f"unknown role {turn.get('role')!r}; expected one of {', '.join(ROLES)}")
        for name in ("content", "reasoning_content", "name", "tool_call_id"):
            _check_words(turn.get(name, ""))
        _check_words(json.dumps(turn.get("tool_calls"), ensure_ascii=False))
    for response in group.responses:
        _check_words(response.text)
        if response.messages is not None and not any(map(_learned, response.messages)):
            raise BadRow("no assistant turn can be learned: each is empty or has train: false")
        if not isinstance(response.label, bool | None):  # "false" would be a good one
            raise BadRow(f"label must be true or false, not {response.label!r}")
        _check_number(response.rank, "rank")
    check_weights(group)
    compared = len(group.responses) > 1 or any(
        one.label is not None or one.scores for one in group.responses
    )
    if compared and any(
        not isinstance(turn.get("train", True), bool) for turn in every_turn(group)
    ):
        raise BadRow(
            "only demonstrations have turns of a weight other than 0 and 1; to weigh a row, use "
            "'weight'"
        )
    if needs_prompt and not group.prompt:
        raise BadRow("there is no prompt")
    if (
        needs_prompt
        and group.prompt[-1]["role"] != "tool"
        and not group.prompt[-1]["content"].strip()
    ):
        raise BadRow("the last turn of the prompt is empty")
    if group.prompt and group.prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt must not end with an assistant turn")
    forms = [*map(text_of, group.responses)]
    if group.pairs is None and any(response.rank is not None for response in group.responses):
        _check_ranks(group.responses, forms)
    elif group.pairs is None and not all(forms):
        raise BadRow("the response is empty")
    for pair in resolved_pairs(group):
        _check_pair(pair, forms)


def _check_words(text: Any) -> None:
    if not isinstance(text, str):
        raise BadRow(f"expected text, not {kind_of(text)}")
    if "\0" in text:
        raise BadRow("a text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("a text is not valid Unicode; save the file as UTF-8") from error


def _learned(message: Message) -> bool:
    has_content = bool(message["content"].strip() or message.get("tool_calls"))
    return message["role"] == "assistant" and bool(message.get("train", True)) and has_content


def _plain(text: str) -> str:
    return typed(text, entities=True).strip()


def text_of(response: Response, words: Callable[[str], str] = _plain) -> Any:
    """The response's text or turns, for comparison. words: the form of a text; default: the same
    for texts that differ only in how they are typed.
    """
    if response.messages is None:
        return words(response.text)
    return turns_of(response.messages, words)


def _check_pair(pair: Pair, forms: Sequence[Any]) -> None:
    """forms: the responses, by `text_of`."""
    check_indices(pair, len(forms))
    better, worse = forms[pair.better], forms[pair.worse]
    if not better and not worse:
        raise BadRow("both responses are empty")
    if better == worse:
        raise BadRow(
            "the better and the worse response are the same, or differ only in how they are typed"
        )
    if not isinstance(pair.p, int | float) or not 0 <= pair.p <= 1:
        raise BadRow(f"p must be a number between 0 and 1, not {pair.p!r}")
    if pair.margin in LEVELS:
        return
    _check_number(pair.margin, f"margin, unless one of {', '.join(LEVELS)},")
    if isinstance(pair.margin, float | int) and pair.margin < 0:
        raise BadRow(f"margin must not be negative: {pair.margin!r}")


def _check_number(value: Any, what: str) -> None:
    """Raise BadRow for what is neither a number nor None; a format may have passed on what a file
    has.
    """
    if to_number(value, what) != value:  # a text of digits, or an empty one
        raise BadRow(f"{what} must be a number, not {value!r}")


def _check_ranks(responses: Sequence[Response], forms: Sequence[Any]) -> None:
    if len(responses) < 2:
        raise BadRow("a ranking needs at least 2 responses")
    missing = [str(index) for index, response in enumerate(responses) if response.rank is None]
    if missing:
        raise BadRow(f"responses without a rank, counted from 0: {', '.join(missing)}")
    if not any(forms):
        raise BadRow("all responses are empty")
