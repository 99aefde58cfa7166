"""The kit of environments: the calculator passes, and each kind of broken one is reported."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from alignkit import DataError, Environment, Group, Message
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_environment

ROWS = [{"prompt": "What is 2 + 3?", "answer": "5"}, {"prompt": "What is 2 * 4?", "answer": 8}]
CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "2 + 3"}}</tool_call>'


def test_every_first_party_environment_conforms() -> None:
    registrations = plugins().registrations("environment")
    ours = {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}
    assert set(ours) == {"calculator"}
    check_environment(ours["calculator"], rows=ROWS, turns=[CALL, "It is 5."])


class Guess(Environment):
    """A good one, which is random and remembers."""

    def reset(self, row: Mapping[str, Any]) -> str:
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

    def get_reward(self) -> dict[str, float | None]:
        return {"tries": -float(self.tries), "luck": float(self.random.random())}


def test_a_good_environment_conforms() -> None:
    check_environment(Guess)
    check_environment(
        Guess, turns=['<tool_call>{"name": "guess", "arguments": {"number": 3}}</tool_call>'] * 4
    )


class Unseeded(Guess):
    def respond(self, turn: Message) -> Sequence[Message] | None:
        return [Message(role="user", content=str(random.random()))]


class Shares(Guess):
    counter: ClassVar[Any] = itertools.count()

    def reset(self, row: Mapping[str, Any]) -> str:
        return super().reset(row) + str(next(self.counter))


class SharesTurns(Guess):
    said: ClassVar[list[str]] = []

    def reset(self, row: Mapping[str, Any]) -> str:
        self.said.clear()
        return super().reset(row)

    def respond(self, turn: Message) -> Sequence[Message] | None:
        self.said.append(turn["content"])
        return [Message(role="user", content=str(len(self.said)))]


class Crashes(Guess):
    def get_reward(self) -> Any:
        return {}["nothing"]


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


class ChangesRow(Guess):
    def reset(self, row: Any) -> Any:
        row["prompt"] = []


BROKEN: list[tuple[type, str]] = [
    (Unseeded, "playing it again changes the episode of row 0"),
    (Shares, "playing it again changes the episode of row 0"),
    (SharesTurns, "playing all episodes at the same time changes the episode of row 0"),
    (Crashes, r"in `Crashes.get_reward`: KeyError: 'nothing'|in `get_reward`: KeyError: 'nothing'"),
    (Undescribed, "tool 'other': .*no description for the argument 'word'"),
    (NoDocstring, "tool 'other': .*has no docstring"),
    (NoHint, "tool 'other': Argument word is missing a type hint"),
    (AnyArguments, r"tool 'other': '.{2}words.*has no name and type"),
    (Picky, "a column is missing"),
    (ChangesRow, "TypeError: .*mappingproxy"),
    (str, "must be a subclass of alignkit.Environment"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_environments_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_environment(cls)
