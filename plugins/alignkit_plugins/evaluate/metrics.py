"""Metrics: named rewards on those of the prompts whose columns match, such as the refusals of
harmful requests.

The verdict goes by them. A metric is a column of scores like a reward's; answers to other prompts
have no score by it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import alignkit
from alignkit import DataError, Field, Group, RewardRef
from alignkit.errors import did_you_mean
from alignkit.reward import REWARD_KEY
from alignkit_plugins.ai_feedback.judge_card import judge_names
from alignkit_plugins.compare.reward_columns import bare, label, with_scores

SHOWN = 8  # columns or values that an error lists


class Metric(alignkit.Options):
    """A reward on some of the prompts."""

    reward: RewardRef = Field(description="reward that scores the responses, such as refusal")
    where: dict[str, Any] = Field(
        default_factory=dict,
        description="columns of the prompts that count, with a value or several; default: all",
    )
    better: Literal["higher", "lower"] = Field("higher", description="which scores are better")

    def counts(self, group: Group) -> bool:
        """Whether a prompt is part of the metric."""
        return all(_matches(group, column, value) for column, value in self.where.items())


def _matches(group: Group, column: str, wanted: Any) -> bool:
    return column in group.meta and any(
        one in _values(wanted) for one in _values(group.meta[column])
    )


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_column(
    prompts: Sequence[Group], column: str, wanted: Sequence[Any], option: tuple[str | int, ...]
) -> None:
    """Raise DataError if no prompt has a column, or one of the values that are wanted of it.
    option: who names it.
    """
    what = f"evaluate: {'.'.join(map(str, option))}: no prompt has"
    columns = set(itertools.chain(*(group.meta for group in prompts)))
    if column not in columns:
        names = sorted(columns)
        near = did_you_mean(column, names)
        near = near or f"the prompts have {', '.join(names[:SHOWN]) or 'no columns'}"
        raise DataError(f"{what} the column '{column}'\nhelp: {near}", option=option)
    there = itertools.chain(*(_values(group.meta.get(column)) for group in prompts))
    known = {str(one): one for one in there}
    for value in wanted:
        if value not in known.values():
            names = sorted(known)
            near = did_you_mean(str(value), names) or f"its values are {', '.join(names[:SHOWN])}"
            raise DataError(f"{what} {column}: {value}\nhelp: {near}", option=option)


def check_where(metrics: Mapping[str, Metric], prompts: Sequence[Group]) -> None:
    """Raise DataError for a metric without prompts."""
    for name, metric in metrics.items():
        option = ("metrics", name, "where")
        for column, value in metric.where.items():
            check_column(prompts, column, _values(value), (*option, column))
        if not any(map(metric.counts, prompts)):
            message = (
                f"evaluate: metric '{name}': no prompt matches all of 'where'\n"
                "help: leave out one of its columns"
            )
            raise DataError(message, option=option)


def distinct_rewards(metrics: Mapping[str, Metric]) -> list[Any]:
    """The rewards of metrics, each once."""
    found = list[Any]()
    for metric in metrics.values():
        if metric.reward not in found:
            found.append(metric.reward)
    return found


def scored(
    groups: Sequence[Group],
    metrics: Mapping[str, Metric],
    scorers: Sequence[Any],
    say: Callable[[str], None],
) -> list[Group]:
    """The groups with a score per metric, under its name, at the prompts that are part of it.

    scorers: of `distinct_rewards`. Each scores only the prompts that count for a metric of its.
    """
    merged = list(groups)
    for spec, scorer in zip(distinct_rewards(metrics), scorers, strict=True):
        named = {name: metric for name, metric in metrics.items() if metric.reward == spec}
        counted = dict[int, list[str]]()
        for place, group in enumerate(groups):
            if names := [name for name, metric in named.items() if metric.counts(group)]:
                counted[place] = names
        say(f"{label(spec)}, for {', '.join(named)}")
        found = scorer.score(bare([groups[place] for place in counted])) if counted else ()
        for (place, names), one in zip(counted.items(), found, strict=True):
            merged[place] = with_scores(merged[place], one, dict.fromkeys(names, REWARD_KEY))
    return merged


def raters_of(options: Any) -> dict[str, Any]:
    """Metrics, the first combination, reward models, and judges, by name; without metrics the first
    reward too.

    Other rewards, such as length, are shown but do not say which policy is better. options: of
    `evaluate`.
    """
    rewards = {label(spec): spec for spec in options.rewards}
    combined = [name for name, spec in rewards.items() if spec.kind == "combine"]
    models = [name for name, spec in rewards.items() if spec.kind in ("stage", "folder")]
    kept = dict.fromkeys([*(combined or ([] if options.metrics else list(rewards)))[:1], *models])
    measured = {name: metric.reward for name, metric in options.metrics.items()}
    judges = dict(zip(judge_names(options.judges), options.judges, strict=True))
    return {**measured, **{name: rewards[name] for name in kept}, **judges}


def verifies(rater: Any) -> bool:
    """Whether a reward only says if an answer is the known one, so that it proves what was learned
    from others.
    """
    return bool(
        getattr(getattr(getattr(rater, "component", None), "options", None), "verifies", False)
    )
