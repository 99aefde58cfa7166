"""A judge that a recipe names, made ready, and its verdicts checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from alignkit.author import AuthorError, calling, made
from alignkit.data.group import Message
from alignkit.reward import Context, Judge, Verdict

Item = tuple[Sequence[Message], str, str]  # prompt, first, second


class CheckedJudge:
    """Calls a judge. Raises PluginError, with the judge's plugin and method, for an author's mistake."""

    def __init__(self, component: Any, context: Context):
        """component: the value of a JudgeRef option."""
        self.judge: Judge
        self.judge, self._author = made(component, context.stage)
        with calling(self._author, "prepare", self.judge):
            self.judge.prepare(context)

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        """The verdicts on (prompt, first, second), in order. A tie has exactly 0.5."""
        if not items:
            return []
        with calling(self._author, "compare", self.judge):
            verdicts = self.judge.compare(items)
        if not isinstance(verdicts, Sequence) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            kinds = sorted({type(each).__name__ for each in verdicts}) if isinstance(verdicts, Sequence) else ()
            found = f"a list of {' and '.join(kinds)}" if kinds else type(verdicts).__name__
            raise self._wrong(f"return a list of Verdict, not {found}")
        if len(verdicts) != len(items):
            raise self._wrong(f"return a verdict for each of {len(items)} comparisons, not {len(verdicts)} verdicts")
        for verdict in verdicts:
            for p in (verdict.p_first, *(verdict.p_orders or ())):
                if p is not None and not (isinstance(p, Real) and 0.0 <= float(p) <= 1.0):  # NaN is not, either
                    raise self._wrong(f"{p!r:.100} is not a probability")
        return [replace(verdict, p_first=0.5) if verdict.tied else verdict for verdict in verdicts]

    def _wrong(self, text: str) -> AuthorError:
        return self._author.error(f"{type(self.judge).__name__}.compare", text)
