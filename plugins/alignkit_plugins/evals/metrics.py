"""Metrics: named rewards on those of the prompts whose columns match, such as the refusals of
harmful requests.

The verdict goes by them. A metric is a column of scores like a reward's; answers to other prompts
have no score by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import alignkit
from alignkit import DataError, Field, Group, RewardRef
from alignkit.errors import did_you_mean
from alignkit_plugins.ai_feedback.judge_card import judge_names
from alignkit_plugins.compare.comparison import label

SHOWN = 8  # columns or values that an error lists


class Metric(alignkit.Options):
    """A reward on some of the prompts."""

    reward: RewardRef = Field(description="reward that scores the responses, such as refusal")
    where: dict[str, Any] = Field(
        {}, "columns of the prompts that count, with a value or several; default: all"
    )
    better: Literal["higher", "lower"] = Field("higher", "which scores are better")
    margin: float = Field(
        0.0,
        "a loss below it counts as none, such as 0.05: the verdict says whether that is sure",
        ge=0,
    )

    def counts(self, group: Group) -> bool:
        """Whether a prompt is part of the metric."""
        for column, wanted in self.where.items():
            there = _values(group.meta[column]) if column in group.meta else []
            if not any(value in _values(wanted) for value in there):
                return False
        return True


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_column(
    prompts: Sequence[Group],
    column: str,
    wanted: Sequence[Any],
    option: tuple[str | int, ...],
    among: str = "",
) -> None:
    """Raise DataError if no prompt has a column, or one of the values that are wanted of it.
    option: who names it. among: as in `check_where`.
    """
    columns, values = dict[str, None](), dict[str, None]()
    for group in prompts:
        columns |= dict.fromkeys(group.meta)
        if column in group.meta:
            values |= dict.fromkeys(map(str, _values(group.meta[column])))
    _check(f"{among} has the column", column, columns, option)
    for value in wanted:
        _check(f"{among} has {column}:", str(value), values, option)


def _check(what: str, name: str, names: Iterable[str], option: tuple[str | int, ...]) -> None:
    if name not in names:
        there = sorted(names)
        near = did_you_mean(name, there) or f"there are {', '.join(there[:SHOWN]) or 'none'}"
        message = f"evaluate: no prompt{what} {name}\nhelp: {near}"
        raise DataError(message, option=option)


def check_where(metrics: Mapping[str, Metric], prompts: Sequence[Group], among: str) -> None:
    """Raise DataError for a metric without prompts. among: which these are, in messages."""
    for name, metric in metrics.items():
        option = ("metrics", name, "where")
        for column, value in metric.where.items():
            check_column(prompts, column, _values(value), (*option, column), among)
        if not any(map(metric.counts, prompts)):
            message = f"evaluate: metric '{name}': no prompt{among} matches all of 'where'"
            raise DataError(message, option=option)


def raters_of(options: Any) -> dict[str, Any]:
    """Metrics, reward models and judges, by name; without metrics the first reward too.

    Other rewards, such as length, are shown but do not say which policy is better. options: of
    `evaluate`.
    """
    raters = {name: metric.reward for name, metric in options.metrics.items()}
    for number, spec in enumerate(options.rewards):
        first = not raters and number == 0
        if first or spec.kind in ("stage", "folder"):
            raters[label(spec)] = spec
    return raters | dict(zip(judge_names(options.judges), options.judges, strict=True))


def verifies(rater: Any) -> bool:
    """Whether a reward only says if an answer is the known one, so that it proves what was learned
    from others.
    """
    component = getattr(rater, "component", None)
    return component is not None and bool(getattr(component.options, "verifies", False))
