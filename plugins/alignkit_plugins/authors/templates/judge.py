"""A judge that prefers the response with fewer words."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit import Add, Field, Judge, Message, Rating, Verdict, hookimpl


class Brief(Judge):
    """Rates by a measure of its own, and compares by its ratings."""

    reads_rubric = False

    class Options(Judge.Options):
        words: int = Field(20, ge=1, description="responses of at most this many words are perfect")

    options: Options

    def rate(
        self, items: Sequence[tuple[Sequence[Message], str]], rubric: str | Sequence[str] = ""
    ) -> list[Rating]:
        return [self._rated(response) for _, response in items]

    def compare(self, items: Sequence[tuple[Sequence[Message], str, str]]) -> list[Verdict]:
        return [
            self._verdict(self._rated(first), self._rated(second)) for _, first, second in items
        ]

    def _rated(self, response: str) -> Rating:
        words = len(response.split())
        if not words:
            return Rating(None, "no words: the response is empty")
        return Rating(min(1.0, self.options.words / words))

    def _verdict(self, first: Rating, second: Rating) -> Verdict:
        if first.score is None or second.score is None:
            return Verdict(None, reason=first.reason or second.reason)
        return Verdict(0.5 if first.score == second.score else float(first.score > second.score))


@hookimpl
def register(add: Add) -> None:
    add("judge", "brief", Brief, "rates short responses best")
