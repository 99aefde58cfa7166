"""A judge that a recipe names, made ready, and its verdicts and ratings checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from alignkit.contract.reward import (
    Context,
    Item,
    Judge,
    Rated,
    Rating,
    Rubric,
    Verdict,
    add_answers,
    spending,
)
from alignkit.errors import RunFailed
from alignkit.host import returns
from alignkit.host.calls import call, create


def rates(judge: type[Judge]) -> bool:
    """Whether a judge rates single responses."""
    return judge.rate is not Judge.rate


def _with_parts(component: Any) -> Iterator[Any]:
    """The judge of a JudgeRef option, and all judges that it asks."""
    yield component
    for part in create(component).parts():
        yield from _with_parts(part)


def _own_measure(component: Any) -> RunFailed:
    return RunFailed(
        f"judge '{component.name}' has its own measure and reads no rubric; leave the rubric out"
    )


class CheckedJudge:
    """Calls a judge. Raises PluginError, with the judge's plugin and method, for an author's
    mistake.
    """

    def __init__(self, component: Any, context: Context):
        """

        Args:
            component: The value of a JudgeRef option.
        """
        self.component = component
        self.judge: Judge = create(component, context.stage)
        call(self.judge, "prepare", context)

    @staticmethod
    def check_rates(component: Any, rubric: Rubric = "") -> None:
        """Check that the judge of an option rates responses. It needs no models: call it in your
        plugin's `check`.

        Args:
            component: The value of a JudgeRef option.
            rubric: What is good: a text or a list of criteria; empty: the judge's own measure.

        Raises:
            RunFailed: If it cannot rate, or not by this rubric.
        """
        for part in _with_parts(component):
            kind = part.registration.implementation
            if not rates(kind):
                raise RunFailed(
                    f"judge '{part.name}' only compares, and ratings are needed; use another one"
                )
            if rubric and not kind.reads_rubric:
                raise _own_measure(part)

    @staticmethod
    def check_compares(component: Any, rubric: Rubric) -> None:
        """Raise RunFailed if the judge of a JudgeRef option cannot compare responses by this
        rubric.

        A plugin that compares by a rubric calls it in its own `check`, as `check_rates`.

        Args:
            component: The value of a JudgeRef option.
            rubric: What is good: a text or a list of criteria; empty: the judge's own measure.
        """
        for part in _with_parts(component) if rubric else ():
            if not part.registration.implementation.compares_by_rubric:
                raise _own_measure(part)

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        """The verdicts on (prompt, first, second), in order. A tie has exactly 0.5.

        Args:
            items: (prompt, first, second).
            rubric: What is good, instead of the judge's own measure.

        Raises:
            RunFailed: As `check_compares` does.
        """
        self.check_compares(self.component, rubric)
        more = (rubric,) if rubric else ()
        verdicts = self._ask("compare", items, *more, returns=partial(returns.verdicts, len(items)))
        return [replace(verdict, p_first=0.5) if verdict.tied else verdict for verdict in verdicts]

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        """The ratings of (prompt, response), in order.

        Args:
            items: (prompt, response).
            rubric: What is good: a text or a list of criteria; empty: the judge's own measure.

        Raises:
            RunFailed: As `check_rates` does.
        """
        self.check_rates(self.component, rubric)
        return self._ask(
            "rate", items, rubric, returns=partial(returns.ratings, len(items), self.scale)
        )

    def _ask(self, method: str, *args: Any, returns: Callable[[Any], None]) -> list[Any]:
        """What the judge says, which `spending` gathers."""
        if not args[0]:
            return []
        with spending():
            answers = list(call(self.judge, method, *args, returns=returns))
        add_answers(answers)
        return answers

    @property
    def scale(self) -> tuple[float, float] | None:
        """The lowest and the highest rating; None if ratings have no bounds."""
        return self.judge.scale
