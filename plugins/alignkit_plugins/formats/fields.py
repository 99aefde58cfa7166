"""Texts with {columns} in them, filled from a row.

`string.Formatter` finds the braces. Their contents are looked up in the row's JSON by key and by
index. There are no attributes, calls or expressions, so that a template runs no code.

| a field | is filled with |
|---|---|
| `{column}` | a text, a number, true or false |
| `{column?}` | the same, or nothing if the column is missing or null |
| `{column.key}` | what an object holds under a key, or a list of what each object of a list holds |
| `{column[0]}` | an item of a list, counted from 0; `[-1]` is the last item |
| `{choices[column]}` | the choice that another column names, by its label, its letter or its
number, counted from 0 |
| `{choices[column-1]}` | the same, counted from 1 |
| `{choices[column]:letter}` | the letter of that choice |
| `{choices:letters}` | all choices, one per line, as `A. ...` |
| `{column:lines}`, `{column:commas}` | the items of a list |
| `{column:true=yes|false=no}` | another text for each value; without `=` for all others; `{}` is
the value |

Choices are a list of texts, {text: [...], label: [...]}, or a list of {text, label}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter, ascii_uppercase
from typing import Any

from alignkit import BadRow
from alignkit.data.files import kind_of
from alignkit.errors import did_you_mean

# Ways to write a value; everything else replaces values.
WAYS = ("letters", "letter", "lines", "commas")
MOST_NAMES = 12  # columns that an error lists
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^\[\]]+\])*")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")
_HEAD = re.compile(r"[^.\[]*")
_NUMBER = re.compile(r"-?\d+")


class Missing(BadRow):
    """The row has no such column, or an object in it no such key."""


class Text:
    """A text with fields. columns: those that it reads. Raises ValueError if it cannot be
    understood.

    where: the key of the template, for errors.
    """

    def __init__(self, text: str, where: str = ""):
        self.source, self.where = text, where
        self.parts: list[str | _Field] = []
        self.columns: list[str] = []
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"{str(error).lower()}; a brace as a letter is written {{{{ or }}}}"
            ) from None
        for words, path, way, conversion in pieces:
            if words:
                self.parts.append(words)
            if conversion is not None:
                raise ValueError(f"'!{conversion}' means nothing in {{{path}!{conversion}}}")
            if path == "":
                raise ValueError("{} names no column; a brace as a letter is written {{ or }}")
            if path is not None:
                field = _Field(path, way or "")
                self.parts.append(field)
                self.columns += field.columns

    def value(self, row: Mapping[str, Any]) -> Any:
        """The text; if it is a single field, what that holds, such as a list. Raises BadRow."""
        try:
            if len(self.parts) == 1 and isinstance(self.parts[0], _Field):
                return self.parts[0].value(row)
            return self.text(row)
        except BadRow as error:
            raise type(error)(f"{self.where}{str(error).removeprefix(self.where)}") from None

    def text(self, row: Mapping[str, Any]) -> str:
        """The text, without white space around it. Raises BadRow."""
        try:
            parts = [part if isinstance(part, str) else part.text(row) for part in self.parts]
        except BadRow as error:
            raise type(error)(f"{self.where}{error}") from None
        return "".join(parts).strip()


class _Field:
    """What is between two braces. path: of a value. way: how it is written."""

    def __init__(self, path: str, way: str):
        self.optional, self.path = path.endswith("?"), path.removesuffix("?")
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"{{{path}}} must be a column, such as {{a}}, {{a.key}} or {{a[0]}}")
        self.way = way if way in WAYS else ""
        self.texts: dict[str, str] = {}
        for part in way.split("|") if way and not self.way else ():
            value, sign, text = part.partition("=")
            if not {"=", "|"} & {*way} or "{" in part.replace("{}", ""):
                near = (
                    did_you_mean(way, WAYS) or f"write {', '.join(WAYS)}, or VALUE=TEXT|VALUE=TEXT"
                )
                raise ValueError(f"':{way}' means nothing in {{{path}:{way}}}; {near}")
            self.texts[_plain(value) if sign else "|"] = text if sign else part
        self.choices, bracket, index = self.path.removesuffix("]").rpartition("[")
        self.index = index if bracket else ""
        if self.way == "letter" and not self.index:
            raise ValueError(f"{{{path}:letter}} needs choices, such as {{choices[{path}]:letter}}")
        # Names of columns may have dots in them.
        self.columns = [self.path, _head(self.path)]
        for _, index in _STEP.findall(self.path):
            if index and not _NUMBER.fullmatch(index):
                self.columns += [index, _head(index), _head(index.removesuffix("-1"))]

    def text(self, row: Mapping[str, Any]) -> str:
        """What the field holds, as text. Raises BadRow."""
        value = self.value(row)
        if value is None and self.optional:
            return ""
        return _written(value, f"'{self.path}'")

    def value(self, row: Mapping[str, Any]) -> Any:
        """What the field holds, as JSON. Raises BadRow."""
        if self.way == "letter":
            choices = _choices(_looked_up(row, self.choices), self.choices)
            return ascii_uppercase[_place(row, self.index, *choices)]
        value = _looked_up(row, self.path, self.optional)
        if self.way == "letters":
            texts, _ = _choices(value, self.path)
            return "\n".join(f"{ascii_uppercase[at]}. {text}" for at, text in enumerate(texts))
        if self.way:
            return {"lines": "\n", "commas": ", "}[self.way].join(texts_of(value, self.path))
        if self.texts:
            return (
                [self._replaced(one) for one in value]
                if isinstance(value, list)
                else self._replaced(value)
            )
        return value

    def _replaced(self, value: Any) -> str:
        """The other text for a value."""
        text = self.texts.get(_plain(value), self.texts.get("|"))
        if text is None:
            raise BadRow(
                f"'{self.path}' is {value!r:.40}, which is none of {', '.join(self.texts)}"
            )
        if "{}" not in text:
            return text
        if value is None and self.optional:
            return ""
        return text.replace("{}", _written(value, f"'{self.path}'"))


def _head(path: str) -> str:
    return _HEAD.match(path)[0]  # type: ignore[index]  # it may match nothing


def _looked_up(row: Mapping[str, Any], path: str, optional: bool = False) -> Any:
    """What a path leads to; None if a value on it is null, or missing from an optional path."""
    if path in row:  # names of columns may have dots in them
        return row[path]
    value = _key(row, _head(path), path, optional)
    for key, index in _STEP.findall(path.removeprefix(_head(path))):
        if value is None:
            return None
        if key and isinstance(value, list):
            value = [_key(item, key, path, optional) for item in value]
        elif key:
            value = _key(value, key, path, optional)
        elif _NUMBER.fullmatch(index):
            if not isinstance(value, list) or not -len(value) <= int(index) < len(value):
                size = f"a list of {len(value)}" if isinstance(value, list) else kind_of(value)
                raise BadRow(f"'{path}': there is no [{index}], counted from 0, in {size}")
            value = value[int(index)]
        else:
            choices = _choices(value, path)
            value = choices[0][_place(row, index, *choices)]
    return value


def _key(value: Any, key: str, path: str, optional: bool) -> Any:
    if not isinstance(value, Mapping):
        raise BadRow(f"'{path}': there is no key '{key}' in {kind_of(value)}")
    if key not in value and not optional:
        names = [str(one) for one in value]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        near = (
            did_you_mean(key, names) or f"there are {', '.join(names[:MOST_NAMES]) or 'none'}{more}"
        )
        what = "column" if path.startswith(key) else "key"
        raise Missing(f"no {what} '{key}'; {near}")
    return value.get(key)


def _choices(value: Any, path: str) -> tuple[list[str], list[str]]:
    """The texts and labels of choices: texts, {text: [...], label: [...]}, or [{text, label}]."""
    labels: Any = ()
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label") or ()
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(one, Mapping) and "text" in one for one in value)
    ):
        labels = [one["label"] for one in value if "label" in one]
        value = [one["text"] for one in value]
        labels = labels if len(labels) == len(value) else ()
    texts = texts_of(value, path)
    if not 1 <= len(texts) <= len(ascii_uppercase):
        raise BadRow(
            f"'{path}' must be a list of 1 to {len(ascii_uppercase)} choices, not {len(texts)}"
        )
    if labels and len(labels) != len(texts):
        raise BadRow(f"'{path}' has {len(texts)} choices and {len(labels)} labels")
    return texts, [_plain(label) for label in labels]


def texts_of(values: Any, path: str) -> list[str]:
    """Texts and numbers as texts. path: what holds them, for the error. Raises BadRow for anything
    else.
    """
    if not isinstance(values, list):
        raise BadRow(f"'{path}' must be a list, not {kind_of(values)}")
    return [_written(one, f"'{path}' must be a list of texts, but an item") for one in values]


def _place(row: Mapping[str, Any], index: str, texts: Sequence[str], labels: Sequence[str]) -> int:
    """The place of the choice that an index means: a number, or a column whose value names the
    choice.
    """
    if _NUMBER.fullmatch(index):
        return choice_of(int(index), index, len(texts))
    first = int(index not in row and index.endswith("-1"))
    name = index.removesuffix("-1") if first else index
    answer = _looked_up(row, name)
    if not labels:
        return choice_of(answer, f"'{name}'", len(texts), first)
    if _plain(answer) not in labels:
        raise BadRow(f"'{name}' is {answer!r:.40}, which is none of the labels {', '.join(labels)}")
    return labels.index(_plain(answer))


def choice_of(answer: Any, name: str, count: int, first: int = 0) -> int:
    """The place, from 0, that a letter or a number means. first: the number of the first choice.
    Raises BadRow.
    """
    plain, place = _plain(answer).upper(), -1
    if len(plain) == 1 and plain in ascii_uppercase:
        place = ascii_uppercase.index(plain)
    elif re.fullmatch("[0-9]{1,9}", plain):
        place = int(plain) - first
    if not 0 <= place < count:
        choices = f"A to {ascii_uppercase[count - 1]}, or {first} to {count - 1 + first}"
        raise BadRow(f"{name} is {answer!r:.40}, but the {count} choices are {choices}")
    return place


def _plain(value: Any) -> str:
    """A value for comparison: 1, 1.0 and " 1 " are equal, and so are true and "True"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def _written(value: Any, what: str) -> str:
    """A value as text. what: holds it. Raises BadRow for one that is null, an object or a list."""
    if value is None:
        raise BadRow(f"{what} is null; write {{NAME?}} if it may be")
    if isinstance(value, Mapping | list):
        keys = f"; its keys: {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
        raise BadRow(
            f"{what} is {kind_of(value)}, not text; write :letters, :lines or [0] for a list{keys}"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)
