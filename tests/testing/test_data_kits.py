"""The kits of formats, readers, model sources and environments: good ones pass, and each kind of
broken one is reported.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit import BadRow, DataError, Environment, Format, Group, Message, Reader, Response
from alignkit.testing import (
    ConformanceError,
    check_environment,
    check_format,
    check_model_source,
    check_reader,
)
from alignkit_plugins.bases.tiny import source as tiny
from tests.testing.kits import broken, reported

NUMBERS = itertools.count()

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
        prompt = (Message(role="user", content=self.text(row, "question")),)
        answer = Response(text=self.text(row, "answer_text"))
        return Group(prompt, (answer,), meta=self.rest(row, "question", "answer_text"))


def test_good_formats_conform() -> None:
    check_format(QA, rows=[{"question": "Who?", "answer_text": "Me.", "id": 7}])
    without = type("Without", (QA,), {"example": ""})
    good = {"question": "Hi", "answer_text": "Hello!"}
    check_format(without, rows=[good])
    with pytest.raises(ConformanceError, match=r"recognize .*Who(?s:.*)refuses .*Who"):
        check_format(QA, rows=[good, {"question": "Who?"}])


def crashes(self: QA, row: Any) -> Group:
    return QA.read(self, {**row, "question": row["question"].strip()})


def crashes_on_numbers(self: QA, row: Any) -> Group:
    if isinstance(row, Mapping):
        row = {**row, "question": (row.get("question") or "").strip()}
    return QA.read(self, row)


def makes_up(self: QA, row: Any) -> Group:
    row = row if isinstance(row, Mapping) else {}
    return QA.read(self, {"question": "?", "answer_text": "!", **row})


def pops(self: QA, row: Any) -> Group:
    group = QA.read(self, row)
    row.pop("answer_text")
    return group


def with_meta(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    def read(self: QA, row: Any) -> Group:
        group = QA.read(self, row)
        change(group.meta)
        return group

    return {"read": read}


LOSES = with_meta(dict.clear)
CONTEXT = {"example": '{"question": "Hi", "answer_text": "Hello!", "context": "Noon"}', **LOSES}


def matching(rule: Callable[[Any], bool]) -> dict[str, Any]:
    return {"matches": classmethod(lambda cls, row: rule(row))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"example": "question, answer_text"}, "`example` must be a row as JSON"),
        ({"example": '{"question": "Hi"}'}, "`read` refuses .* 'answer_text' is missing"),
        (LOSES, "a further column is not in the group's `meta`"),
        (CONTEXT, "column 'context' of .* is lost"),
        ({"read": crashes}, r"KeyError: 'question' \(test_data_kits.py:\d+\).* must raise BadRow"),
        ({"read": crashes_on_numbers}, 'AttributeError: .*"question": 3'),
        ({"read": lambda self, row: QA.read(self, row[0] if row == [] else row)}, r"for \[\]"),
        ({"read": makes_up}, "`read` makes a group of {}"),
        (matching(lambda row: isinstance(row, Mapping)), "also recognizes the example of 'alpaca'"),
        (matching(lambda row: isinstance(row, Mapping)), "`matches` recognizes {}: it must be str"),
        (matching(lambda row: False), "`matches` does not recognize"),
        (matching(lambda row: "answer_text" in row), "[.]matches`: TypeError"),
        ({"read": pops}, "`read` changes the row"),
        (with_meta(lambda meta: meta.update(more=next(NUMBERS))), "makes other groups of .* again"),
        (with_meta(lambda meta: meta.update(more=("a", "b"))), "changes when it is stored as JSON"),
        ({"read": lambda self, row: [QA.read(self, row)]}, "must return a Group, not list"),
        ({"groups": lambda self, row: ()}, "`groups` returns no group for"),
    ],
)
def test_broken_formats_are_reported(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_format(broken(QA, **changed))
    lines = str(caught.value).splitlines()
    assert all(line.startswith("Broken: ") for line in lines)
    assert changed is not LOSES or len(lines) == 1  # reported once


# Readers


class Lines(Reader):
    """A good one: a JSON list of prompts."""

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        for number, prompt in enumerate(json.loads(path.read_bytes()), 1):
            yield number, {"prompt": prompt}


def grows(self: Lines, path: Path) -> Iterator[tuple[int, Any]]:
    yield from [*Lines.rows(self, path), (9, {"prompt": str(next(NUMBERS))})]


def from_zero(self: Lines, path: Path) -> Iterator[tuple[int, Any]]:
    return ((number - 1, row) for number, row in Lines.rows(self, path))


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (broken(Lines, rows=from_zero), '["a", "b"]', r"number them upward from 1.* \[0, 1\]"),
        (broken(Lines, rows=lambda *of: iter([(2, "a"), (1, "b")])), "[]", r"these are \[2, 1\]"),
        (broken(Lines, rows=grows), '["a", "b"]', "a second read has other rows"),
        (Lines, "[]", "there is none: pass another file"),
        (dict, "[]", "must be a subclass of alignkit.Reader"),
    ],
)
def test_readers(cls: Any, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.list"
    file.write_text('["a", "b"]', encoding="utf-8")
    check_reader(Lines, file)
    file.write_text(text, encoding="utf-8")
    reported(check_reader, cls, message, file)


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
        (lambda cache: cache, "return a model's folder"),
        (lambda cache: "tiny", "return a model's folder"),
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


TURNS: list[str] = []  # of all episodes


def forgets(self: Any, row: Mapping[str, Any]) -> Any:
    TURNS.clear()
    return Guess.reset(self, row)


def counts_turns(self: Any, turn: Message) -> Sequence[Message]:
    TURNS.append(turn["content"])
    return [Message(role="user", content=str(len(TURNS)))]


def unseeded(self: Any, turn: Message) -> list[Message]:
    return [Message(role="user", content=str(random.random()))]


def no_hint(self: Any, word) -> str:  # type: ignore[no-untyped-def]
    """Has no hint."""
    return str(word)


def any_arguments(self: Any, **words: str) -> str:
    """Takes everything.

    Args:
        words: whatever comes.
    """
    return str(words)


def picky(self: Any, groups: Sequence[Group]) -> None:
    raise DataError("a column is missing")


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"respond": unseeded}, "playing it again changes the episode of row 0"),
        (
            {"respond": counts_turns, "reset": forgets},
            "playing all episodes at the same time changes the episode of row 0",
        ),
        ({"get_reward": lambda self: 1 / 0}, "ZeroDivisionError"),
        ({"get_reward": lambda self: random.random()}, "playing it again changes"),
        ({"reset": lambda self, row: row.clear()}, "mappingproxy"),
        ({"other": no_hint}, "tool 'other': Argument word is missing a type hint"),
        ({"other": any_arguments}, r"tool 'other': '.{2}words.*has no name and type"),
        ({"check_prompts": picky}, "a column is missing"),
    ],
)
def test_broken_environments_are_reported(methods: dict[str, Any], message: str) -> None:
    reported(check_environment, broken(Guess, **methods), message)
    reported(check_environment, str, r"must be a subclass of alignkit\.Environment")
