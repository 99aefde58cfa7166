"""The kits of formats, readers, model sources and environments: good ones pass, and each kind of
broken one is reported.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignkit import BadRow, DataError, Environment, Format, Group, Message, Reader, Response
from alignkit.testing import (
    ConformanceError,
    check_environment,
    check_format,
    check_model_source,
    check_reader,
)
from alignkit_plugins.models.tiny import source as tiny

# Formats


class QA(Format):
    """A good one."""

    summary = "question and answer"
    wants = "question and answer_text (texts)"
    example = '{"question": "Hi", "answer_text": "Hello!"}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "question", "answer_text")

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        return self.group(row, self.rest(row, "question", "answer_text"))

    def group(self, row: Mapping[str, Any], meta: dict[str, Any]) -> Group:
        prompt = (Message(role="user", content=self.text(row, "question")),)
        return Group(prompt, (Response(text=self.text(row, "answer_text")),), meta=meta)


class Spaced(QA):
    """A good one, whose columns have names that are no words."""

    wants = "columns my-question and my answer"
    example = '{"my-question": "Hi", "my answer": "Hello"}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return isinstance(row, Mapping) and "my-question" in row

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        names = {"my-question": "question", "my answer": "answer_text"}
        return super().read({names.get(name, name): value for name, value in row.items()})


def test_good_formats_conform() -> None:
    check_format(QA, rows=[{"question": "Who?", "answer_text": "Me.", "id": 7}])
    check_format(Spaced)
    without = type("Without", (QA,), {"example": ""})
    check_format(without, rows=[{"question": "Hi", "answer_text": "Hello!"}])


def crashes(self: QA, row: Any) -> Group:
    prompt = (Message(role="user", content=row["question"].strip()),)
    return Group(prompt, (Response(text=row["answer_text"]),))


def crashes_on_numbers(self: QA, row: Any) -> Group:
    if isinstance(row, Mapping):
        row = {**row, "question": (row.get("question") or "").strip()}
    return QA.read(self, row)


def makes_up(self: QA, row: Any) -> Group:
    row = row if isinstance(row, Mapping) else {}
    meta = self.rest(row, "question", "answer_text")
    return self.group({"question": "?", "answer_text": "!", **row}, meta)


def loses(self: QA, row: Any) -> Group:
    group = QA.read(self, row)
    group.meta.clear()
    return group


def pops(self: QA, row: Any) -> Group:
    group = QA.read(self, row)
    row.pop("answer_text")
    return group


NUMBERS = itertools.count()


def with_meta(value: Callable[[], Any]) -> Callable[[QA, Any], Group]:
    def read(self: QA, row: Any) -> Group:
        group = QA.read(self, row)
        group.meta["more"] = value()
        return group

    return read


CONTEXT = {
    "example": '{"question": "Hi", "answer_text": "Hello!", "context": "Noon"}',
    "wants": "question and answer_text; optional context",
    "read": loses,
}


def matching(rule: Callable[[Any], bool]) -> dict[str, Any]:
    return {"matches": classmethod(lambda cls, row: rule(row))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"example": ""}, "`example` must be a row as JSON"),
        ({"example": "question, answer_text"}, "`example` must be a row as JSON"),
        ({"example": '{"question": "Hi"}'}, "`read` refuses .* 'answer_text' is missing"),
        ({"read": loses}, "a further column is not in the group's `meta`"),
        (CONTEXT, "column 'context' of .* is lost"),
        ({"read": crashes}, r"KeyError: 'question' \(test_data_kits.py:\d+\).* must raise BadRow"),
        ({"read": crashes_on_numbers}, 'AttributeError: .*"question": 3'),
        ({"read": lambda self, row: QA.read(self, row[0] if row == [] else row)}, r"for \[\]"),
        ({"read": makes_up}, "`read` makes a group of {}"),
        (matching(lambda row: isinstance(row, Mapping)), "also recognizes the example of 'alpaca'"),
        (matching(lambda row: "answer" in (row or ())), "`matches` does not recognize"),
        (matching(lambda row: "answer_text" in row), "[.]matches`: TypeError"),
        ({"read": pops}, "`read` changes the row"),
        ({"read": with_meta(lambda: next(NUMBERS))}, "makes other groups of .* reads it again"),
        ({"read": with_meta(lambda: ("a", "b"))}, "changes when it is stored as JSON"),
        ({"read": lambda self, row: [QA.read(self, row)]}, "must return a Group, not list"),
        ({"groups": lambda self, row: ()}, "`groups` returns no group for"),
        (
            {"group": lambda self, row, meta: Group(row["question"], meta=meta)},
            "[.]read`: AttributeError",
        ),
    ],
)
def test_broken_formats_are_reported(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_format(type("Broken", (QA,), changed))
    lines = str(caught.value).splitlines()
    assert all(line.startswith("Broken: ") for line in lines)
    assert changed != {"read": loses} or len(lines) == 1  # reported once


# Readers


class Lines(Reader):
    """A good one: a JSON list of prompts."""

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        try:
            prompts = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path}: no list of prompts: {error}") from error
        for number, prompt in enumerate(prompts, 1):
            yield number, {"prompt": prompt}


class FromZero(Lines):
    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        return ((number - 1, row) for number, row in super().rows(path))


class Grows(Lines):
    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        yield from [*super().rows(path), (9, {"prompt": str(next(NUMBERS))})]


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (FromZero, '["a", "b"]', r"number them upward from 1.* \[0, 1\]"),
        (Grows, '["a", "b"]', "a second read has other rows"),
        (Lines, "[]", "there is none: pass another file"),
        (dict, "[]", "must be a subclass of alignkit.Reader"),
    ],
)
def test_readers(cls: Any, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.list"
    file.write_text('["a", "b"]', encoding="utf-8")
    check_reader(Lines, file)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConformanceError, match=message):
        check_reader(cls, file)


# Model sources


def cut(cache: Path) -> Path:
    folder = tiny(cache)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def unreachable(cache: Path) -> Path:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda cache: 3, "return a model's folder, which has a config.json, or a hub id"),
        (lambda cache: cache / "nothing", "return a model's folder"),
        (lambda cache: cache, "return a model's folder"),
        (cut, "its weights in safetensors cannot be read"),
        (lambda cache: tiny(cache / str(next(NUMBERS))), "a second call returns .* instead of"),
        (unreachable, "in `unreachable`: OSError: no network"),
        ("tiny", "must be a function, not 'tiny'"),
    ],
)
def test_broken_sources_are_reported(source: Any, message: str, tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir()
    with pytest.raises(ConformanceError, match=message):
        check_model_source(source, cache=cache)


# Environments


class Guess(Environment):
    """A good one, which is random and remembers."""

    def reset(self, row: Mapping[str, Any]) -> Any:
        self.number, self.tries = int(self.random.integers(10)), 0
        return f" (attempt {self.random.integers(5)})"

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: from 0 to 9.
        """
        self.tries += 1
        if not 0 <= number <= 9:
            raise ValueError("from 0 to 9")
        return "right" if number == self.number else "wrong"

    def get_reward(self) -> Any:
        return {"tries": -float(self.tries), "luck": float(self.random.random())}


def test_a_good_environment_conforms() -> None:
    check_environment(Guess)
    call = '<tool_call>{"name": "guess", "arguments": {"number": 3}}</tool_call>'
    check_environment(Guess, turns=[call] * 4)


class SharesTurns(Guess):
    said: ClassVar[list[str]] = []

    def reset(self, row: Mapping[str, Any]) -> Any:
        self.said.clear()
        return super().reset(row)

    def respond(self, turn: Message) -> Sequence[Message] | None:
        self.said.append(turn["content"])
        return [Message(role="user", content=str(len(self.said)))]


class Undescribed(Guess):
    def other(self, word: str) -> str:
        """No description of its argument."""
        return word


class NoDocstring(Guess):
    def other(self, word: str) -> str:
        return word


class NoHint(Guess):
    def other(self, word) -> str:  # type: ignore[no-untyped-def]
        """Has no hint."""
        return str(word)


class AnyArguments(Guess):
    def other(self, **words: str) -> str:
        """Takes everything.

        Args:
            words: whatever comes.
        """
        return str(words)


class Picky(Guess):
    def check_prompts(self, groups: Sequence[Group]) -> None:
        raise DataError("a column is missing")


def guess(**methods: Any) -> type[Guess]:
    return type("Broken", (Guess,), methods)


def numbered(self: Any, turn: Message) -> list[Message]:
    return [Message(role="user", content=str(next(NUMBERS)))]


def unseeded(self: Any, turn: Message) -> list[Message]:
    return [Message(role="user", content=str(random.random()))]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (guess(respond=unseeded), "playing it again changes the episode of row 0"),
        (guess(respond=numbered), "playing it again changes"),
        (SharesTurns, "playing all episodes at the same time changes the episode of row 0"),
        (guess(get_reward=lambda self: 1 / 0), "ZeroDivisionError"),
        (guess(reset=lambda self, row: row.clear()), "mappingproxy"),
        (Undescribed, "tool 'other': .*no description for the argument 'word'"),
        (NoDocstring, "tool 'other': .*has no docstring"),
        (NoHint, "tool 'other': Argument word is missing a type hint"),
        (AnyArguments, r"tool 'other': '.{2}words.*has no name and type"),
        (Picky, "a column is missing"),
        (str, "must be a subclass of alignkit.Environment"),
    ],
)
def test_broken_environments_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_environment(cls)
