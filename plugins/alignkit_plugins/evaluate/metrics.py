"""Metrics: named rewards on those of the prompts whose columns match, such as the refusals of
harmful requests.

The verdict goes by them. A metric is a column of scores like a reward's; answers to other prompts
have no score by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import alignkit
from alignkit import DataError, Field, Group, RewardRef, StepData
from alignkit.errors import did_you_mean
from alignkit.evaluation import statistics
from alignkit.reward import REWARD_KEY
from alignkit_plugins.ai_feedback.judge_card import judge_names
from alignkit_plugins.compare.reward_columns import bare, label
from alignkit_plugins.evaluate.variant import Variant

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
        return all(
            column in group.meta
            and any(one in _values(value) for one in _values(group.meta[column]))
            for column, value in self.where.items()
        )


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def limited(
    metrics: Mapping[str, Metric], prompts: Sequence[Group], limit: int | None
) -> list[Group]:
    """The first `limit` prompts, or those of each metric: `where` may choose others than the
    first.
    """
    if limit is None or not metrics:
        return list(prompts[:limit])
    counted = [
        [place for place, group in enumerate(prompts) if one.counts(group)]
        for one in metrics.values()
    ]
    return [
        prompts[place]
        for place in sorted({place for places in counted for place in places[:limit]})
    ]


def check_where(metrics: Mapping[str, Metric], prompts: Sequence[Group]) -> None:
    """Raise DataError for a metric without prompts."""
    for name, metric in metrics.items():
        for column, value in metric.where.items():
            _check_column(name, column, _values(value), prompts)
        if not any(map(metric.counts, prompts)):
            message = (
                f"evaluate: metric '{name}': no prompt matches all of 'where'\n"
                "help: leave out one of its columns"
            )
            raise DataError(message, option=("metrics", name, "where"))


def _check_column(name: str, column: str, wanted: Sequence[Any], prompts: Sequence[Group]) -> None:
    columns = sorted({key for group in prompts for key in group.meta})
    if column not in columns:
        near = (
            did_you_mean(column, columns)
            or f"the prompts have {', '.join(columns[:SHOWN]) or 'no columns'}"
        )
        message = f"evaluate: metric '{name}': no prompt has the column '{column}'\nhelp: {near}"
        raise DataError(message, option=("metrics", name, "where", column))
    there = [
        value for group in prompts if column in group.meta for value in _values(group.meta[column])
    ]
    for value in wanted:
        if value not in there:
            known = sorted({str(one) for one in there})
            near = did_you_mean(str(value), known) or f"its values are {', '.join(known[:SHOWN])}"
            if str(value) in known:
                near = (
                    f"{value} is a {'number' if isinstance(value, str) else 'text, in quotes,'} "
                    "there"
                )
            message = f"evaluate: metric '{name}': no prompt has {column}: {value}\nhelp: {near}"
            raise DataError(message, option=("metrics", name, "where", column))


def distinct_rewards(metrics: Mapping[str, Metric]) -> list[tuple[Any, dict[str, Metric]]]:
    """Each reward once, with the metrics that it scores."""
    found: list[tuple[Any, dict[str, Metric]]] = []
    for name, metric in metrics.items():
        same = next((named for spec, named in found if spec == metric.reward), None)
        if same is None:
            found.append((metric.reward, {name: metric}))
        else:
            same[name] = metric
    return found


def scored(
    groups: Sequence[Group],
    metrics: Mapping[str, Metric],
    scorers: Sequence[Any],
    say: Callable[[str], None],
) -> list[Group]:
    """The groups with a score per metric, under its name; None at prompts that are not part of it.

    scorers: those of `distinct_rewards`. Each scores only the prompts that count for a metric of
    its.
    """
    merged = list(groups)
    for (spec, named), scorer in zip(distinct_rewards(metrics), scorers, strict=True):
        places = [
            place
            for place, group in enumerate(groups)
            if any(m.counts(group) for m in named.values())
        ]
        say(f"{label(spec)}, for {', '.join(named)}")
        found = dict(
            zip(
                places,
                scorer.score(bare([groups[place] for place in places])) if places else (),
                strict=True,
            )
        )
        for place, group in enumerate(groups):
            scores = (
                [r.scores[REWARD_KEY] for r in found[place].responses] if place in found else []
            )
            merged[place] = _with_scores(
                merged[place], scores, [n for n, m in named.items() if m.counts(group)], named
            )
    return merged


def _with_scores(
    group: Group, scores: Sequence[Any], counted: Sequence[str], names: Mapping[str, Any]
) -> Group:
    responses = [
        replace(
            r,
            scores={**r.scores, **{name: scores[k] if name in counted else None for name in names}},
        )
        for k, r in enumerate(group.responses)
    ]
    return replace(group, responses=tuple(responses))


def described(metrics: Mapping[str, Metric], groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """What evaluation.json says of each metric. percent: whether all of its scores are 0 or 1."""
    return {
        name: {
            "reward": label(metric.reward),
            "where": metric.where,
            "better": metric.better,
            "prompts": sum(map(metric.counts, groups)),
            "percent": statistics.levels_of(_scores(groups, name)) == (0.0, 1.0),
        }
        for name, metric in metrics.items()
    }


def _scores(groups: Sequence[Group], name: str) -> list[float]:
    return [
        value for group in groups for r in group.responses if (value := r.scores[name]) is not None
    ]


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


def chosen_by_raters(
    options: Any, variants: Mapping[str, Variant], learned: Callable[[Any, Any], bool | None]
) -> list[str]:
    """Warnings of policies that a rater judges by which their answers were chosen. learned: of the
    context.
    """
    raters = raters_of(options).items()
    own = {
        p: [name for name, rater in raters if one.chosen_by(rater, learned)]
        for p, one in variants.items()
    }
    return [
        f"warning: {policy} is judged by the reward it was chosen with: {', '.join(names)}"
        for policy, names in own.items()
        if names
    ]


def warn_of_own_raters(
    options: Any,
    policies: Sequence[str],
    learned: Callable[[str, Any], bool | None],
    data: StepData,
) -> None:
    """Say which policies nothing judges independently, in one line. learned: whether one is its
    rater's own.
    """
    raters = raters_of(options)
    alone = [
        policy
        for policy in policies
        if raters and all(learned(policy, rater) for rater in raters.values())
    ]
    if alone:
        data.say(
            f"warning: nothing in this evaluation judges {', '.join(alone)} independently: "
            f"training was to please {', '.join(raters)}. Add `metrics:` with a reward that "
            "nothing was trained on"
        )
