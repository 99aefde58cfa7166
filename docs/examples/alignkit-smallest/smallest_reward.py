"""A reward for responses that do not shout."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit import Add, Field, Group, Reward, hookimpl


class Calm(Reward):
    """Minus the share of characters that are capital letters or marks."""

    class Options(Reward.Options):
        marks: str = Field("!", "characters that count like capital letters")

    options: Options

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        scores = []
        for group in groups:
            scores += [self._calm(response.text) for response in group.responses]
        return scores

    def _calm(self, text: str) -> float:
        loud = sum(letter.isupper() or letter in self.options.marks for letter in text)
        return -loud / max(1, len(text))


@hookimpl
def register(add: Add) -> None:
    add("reward", "calm", Calm, "less for capital letters and marks")
