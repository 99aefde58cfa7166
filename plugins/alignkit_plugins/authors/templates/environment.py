"""A game with a tool: guess a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Add, Environment, Field, Message, hookimpl


class HigherLower(Environment):
    """Every response plays a game of its own. The reward is 1 if the number was guessed."""

    class Options(Environment.Options):
        largest: int = Field(99, ge=1, description="numbers are from 1 to this one")

    options: Options

    def reset(self, row: Mapping[str, Any]) -> str:
        self.secret = int(self.random.integers(1, self.options.largest + 1))
        self.guessed = False
        return f"\nGuess my number from 1 to {self.options.largest}."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: your guess.
        """
        if not 1 <= number <= self.options.largest:
            # The policy reads it
            raise ValueError(f"the number is from 1 to {self.options.largest}")
        self.guessed = self.guessed or number == self.secret
        return "right" if number == self.secret else "higher" if number < self.secret else "lower"

    def respond(self, turn: Message) -> Sequence[Message] | None:
        if self.guessed:
            return None  # the episode ends
        return self.call_tools(turn) or [Message(role="user", content="Please guess.")]

    def get_reward(self) -> float:
        return float(self.guessed)


@hookimpl
def register(add: Add) -> None:
    add("environment", "higher_lower", HigherLower, "guess a number with a tool")
