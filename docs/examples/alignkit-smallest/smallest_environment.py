"""An environment: the policy guesses a number with a tool, which says: higher, or lower."""

from collections.abc import Mapping
from typing import Any

from alignkit import Add, Environment, hookimpl


class Guess(Environment):
    def reset(self, row: Mapping[str, Any]) -> str:
        self.number, self.found = int(self.random.integers(1, 11)), False
        return "Guess my number from 1 to 10."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: from 1 to 10

        Returns:
            Whether the number is right, or higher, or lower.
        """
        self.found = self.found or number == self.number
        if number == self.number:
            return "right"
        return "higher" if number < self.number else "lower"

    def get_reward(self) -> float:
        return float(self.found)


@hookimpl
def register(add: Add) -> None:
    add("environment", "guess", Guess, "guess a number from 1 to 10")
