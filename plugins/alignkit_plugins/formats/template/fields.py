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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from string import Formatter, ascii_uppercase
from typing import Any

from alignkit import BadRow
from alignkit.data.files import kind_of
from alignkit.errors import did_you_mean

WAYS = ("letters", "letter", "lines", "commas")  # to write a value; everything else replaces values
MOST_NAMES = 12  # columns that an error lists
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^\[\]]+\])*")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")


class Text:
    """A text with fields. columns: those that it reads. Raises ValueError if it cannot be
    understood.

    where: the key of the template, for errors.
    """

    def __init__(self, text: str, where: str = ""):
        self.where = where
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"{str(error).lower()}; a brace as a letter is written {{{{ or }}}}"
            ) from None
        self.parts: list[str | _Field] = []
        for words, path, way, conversion in pieces:
            self.parts += [words] if words else []
            if conversion is not None:
                raise ValueError(f"'!{conversion}' means nothing in {{{path}!{conversion}}}")
            if path == "":
                raise ValueError("{} names no column; a brace as a letter is written {{ or }}")
            if path is not None:
                self.parts.append(_Field(path, way or ""))
        self.columns = [
            name for part in self.parts if isinstance(part, _Field) for name in part.columns
        ]

    def value(self, row: Mapping[str, Any]) -> Any:
        """The text; if it is a single field, what that holds, such as a list. Raises BadRow."""
        if len(self.parts) != 1 or isinstance(field := self.parts[0], str):
            return self.text(row)
        with self.named():
            return field.value(row)

    def text(self, row: Mapping[str, Any]) -> str:
        """The text, without white space around it. Raises BadRow."""
        with self.named():
            return "".join(
                part if isinstance(part, str) else part.text(row) for part in self.parts
            ).strip()

    def choice(self, row: Mapping[str, Any], count: int) -> int:
        """The place of the choice that the value means. count: of all choices. Raises BadRow."""
        value = self.value(row)
        with self.named():
            return _counted(value, "it", count)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let a BadRow say what the text is."""
        try:
            yield
        except BadRow as error:
            raise type(error)(f"{self.where}{error}") from None


class Missing(BadRow):
    """The row has no such column, or an object in it no such key."""


class _Field:
    """What is between two braces. path: of a value. way: how it is written."""

    def __init__(self, path: str, way: str):
        self.optional, self.path = path.endswith("?"), path.removesuffix("?")
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"{{{path}}} must be a column, such as {{a}}, {{a.key}} or {{a[0]}}")
        self.way, self.texts = (way if way in WAYS else ""), dict[str, str]()
        for part in way.split("|") if way and not self.way else ():
            value, sign, text = part.partition("=")
            if ("=" not in way and "|" not in way) or "{" in part.replace("{}", ""):
                near = (
                    did_you_mean(way, WAYS) or f"write {', '.join(WAYS)}, or VALUE=TEXT|VALUE=TEXT"
                )
                raise ValueError(f"':{way}' means nothing in {{{path}:{way}}}; {near}")
            self.texts[_plain(value) if sign else "|"] = text if sign else part
        self.choices, bracket, index = self.path.removesuffix("]").rpartition("[")
        self.index = index if bracket else ""
        if self.way == "letter" and not self.index:
            raise ValueError(f"{{{path}:letter}} needs choices, such as {{choices[{path}]:letter}}")
        indices = (
            index for _, index in _STEP.findall(self.path) if index and not _is_number(index)
        )
        # Names of columns may have dots in them.
        self.columns = [
            name
            for path in (self.path, *indices)
            for name in (path, _head(path), _head(path.removesuffix("-1")))
        ]

    def text(self, row: Mapping[str, Any]) -> str:
        value = self.value(row)
        if value is None and self.optional:
            return ""
        if value is None:
            raise BadRow(f"'{self.path}' is null; write {{{self.path}?}} if it may be")
        if isinstance(value, Mapping | list):
            ways = ", ".join(f"{{{self.path}{way}}}" for way in (":letters", ":lines", "[0]"))
            keys = (
                f"its keys: {', '.join(map(str, value))}"
                if isinstance(value, Mapping)
                else f"write {ways}"
            )
            raise BadRow(f"'{self.path}' is {kind_of(value)}, not text; {keys}")
        return _written(value)

    def value(self, row: Mapping[str, Any]) -> Any:
        """What the field holds, as JSON. Raises BadRow."""
        if self.way == "letter":
            return ascii_uppercase[
                _place(row, self.index, _choices(_looked_up(row, self.choices), self.choices))
            ]
        value = _looked_up(row, self.path, self.optional)
        if self.way == "letters":
            lines = zip(ascii_uppercase, _choices(value, self.path).texts, strict=False)
            return "\n".join(f"{letter}. {text}" for letter, text in lines)
        if self.way:
            if not isinstance(value, list):
                raise BadRow(f"'{self.path}' is {kind_of(value)}, not a list")
            return {"lines": "\n", "commas": ", "}[self.way].join(texts_of(value, self.path))
        if self.texts:
            return (
                [*map(self._replaced, value)] if isinstance(value, list) else self._replaced(value)
            )
        return value

    def _replaced(self, value: Any) -> str:
        """The other text for a value."""
        text = self.texts.get(_plain(value), self.texts.get("|"))
        if text is None:
            raise BadRow(
                f"'{self.path}' is {_short(value)}, which is none of {', '.join(self.texts)}"
            )
        if "{}" not in text:
            return text
        if value is None and self.optional:
            return ""
        if value is None or isinstance(value, Mapping | list):
            raise BadRow(f"'{self.path}' is {kind_of(value)}, not a text to keep with {{}}")
        return text.replace("{}", _written(value))


@dataclass(frozen=True)
class _Choices:
    texts: Sequence[str]
    labels: Sequence[str] = ()


def _head(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _is_number(index: str) -> bool:
    return re.fullmatch(r"-?\d+", index) is not None


def _looked_up(row: Mapping[str, Any], path: str, optional: bool = False) -> Any:
    """What a path leads to; None if a value on it is null, or missing from an optional path."""
    if path in row:  # names of columns may have dots in them
        return row[path]
    head = _head(path)
    if head not in row:
        if optional:
            return None
        raise Missing(f"no column '{head}'; {_near(head, row)}")
    value = row[head]
    for key, index in _STEP.findall(path.removeprefix(head)):
        if value is None:
            return None
        if not key and not _is_number(index):
            choices = _choices(value, path)
            value = choices.texts[_place(row, index, choices)]
        elif not key:
            value = _item(value, int(index), path)
        elif isinstance(value, list):
            value = [_key(item, key, path, optional) for item in value]
        else:
            value = _key(value, key, path, optional)
    return value


def _key(value: Any, key: str, path: str, optional: bool) -> Any:
    if not isinstance(value, Mapping):
        raise BadRow(f"'{path}': there is no key '{key}' in {kind_of(value)}")
    if key not in value and not optional:
        raise Missing(f"'{path}': no key '{key}'; {_near(key, value)}")
    return value.get(key)


def _item(value: Any, index: int, path: str) -> Any:
    if not isinstance(value, list):
        raise BadRow(f"'{path}': [{index}] needs a list, not {kind_of(value)}")
    if not -len(value) <= index < len(value):
        raise BadRow(
            f"'{path}': there is no [{index}] in a list of {len(value)}, which are counted from 0"
        )
    return value[index]


def _near(name: str, known: Mapping[str, Any]) -> str:
    """The nearest name, or all of them."""
    names = [str(one) for one in known]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return did_you_mean(name, names) or f"there are {', '.join(names[:MOST_NAMES]) or 'none'}{more}"


def _choices(value: Any, path: str) -> _Choices:
    labels: Any = ()
    texts = value
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label") or ()
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(one, Mapping) and "text" in one for one in value)
    ):
        texts = [one["text"] for one in value]
        labels = [one["label"] for one in value] if all("label" in one for one in value) else ()
    if not isinstance(texts, list) or not 1 <= len(texts) <= len(ascii_uppercase):
        raise BadRow(
            f"'{path}' must be a list of 1 to {len(ascii_uppercase)} choices, not {_short(value)}"
        )
    if labels and len(labels) != len(texts):
        raise BadRow(f"'{path}' has {len(texts)} choices and {len(labels)} labels")
    return _Choices(texts_of(texts, path), [_written(label) for label in labels])


def texts_of(values: Sequence[Any], path: str) -> list[str]:
    """Texts and numbers as texts. path: what holds them, for the error. Raises BadRow for anything
    else.
    """
    if wrong := [kind_of(one) for one in values if one is None or isinstance(one, Mapping | list)]:
        raise BadRow(f"'{path}' must be a list of texts, but holds {wrong[0]}")
    return [_written(one) for one in values]


def _place(row: Mapping[str, Any], index: str, choices: _Choices) -> int:
    """The place of the choice that an index means: a number, or a column whose value names the
    choice.
    """
    if _is_number(index):
        return _counted(int(index), index, len(choices.texts))
    first = int(index not in row and index.endswith("-1"))
    name = index.removesuffix("-1") if first else index
    answer = _looked_up(row, name)
    if not choices.labels:
        return _counted(answer, name, len(choices.texts), first)
    labels = [_plain(label) for label in choices.labels]
    if _plain(answer) not in labels:
        raise BadRow(
            f"'{name}' is {_short(answer)}, which is none of the labels {', '.join(choices.labels)}"
        )
    return labels.index(_plain(answer))


def _counted(answer: Any, name: str, count: int, first: int = 0) -> int:
    """The place, from 0, that a letter or a number means. first: the number of the first choice."""
    plain = _plain(answer)
    is_letter = re.fullmatch("[a-z]", plain)
    place = (
        ord(plain) - ord("a")
        if is_letter
        else int(plain) - first
        if re.fullmatch("[0-9]{1,9}", plain)
        else -1
    )
    if not 0 <= place < count:
        choices = f"A to {ascii_uppercase[count - 1]}, or {first} to {count - 1 + first}"
        raise BadRow(f"'{name}' is {_short(answer)}, but the {count} choices are {choices}")
    return place


def _plain(value: Any) -> str:
    """A value for comparison: 1, 1.0 and " 1 " are equal, and so are true and "True"."""
    return (
        _written(int(value) if isinstance(value, float) and value.is_integer() else value)
        .strip()
        .casefold()
    )


def _written(value: Any) -> str:
    """A value as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> str:
    """A value as a message shows it."""
    if value is None or isinstance(value, Mapping | list):
        return kind_of(value)
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
