"""A judge: it prefers the shorter response."""

from collections.abc import Sequence
from typing import Any

from alignkit import Add, Judge, Verdict, hookimpl


class Shorter(Judge):
    def compare(self, items: Sequence[Any]) -> list[Verdict]:
        verdicts = []
        for _, first, second in items:
            longer = len(second) - len(first)
            verdicts.append(Verdict(0.5 if longer == 0 else float(longer > 0)))
        return verdicts


@hookimpl
def register(add: Add) -> None:
    add("judge", "shorter", Shorter, "prefers the shorter response")
