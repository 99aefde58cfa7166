"""More views of a comparison: a ranking of all policies by each rater, and results by a column of
the prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit import DataError, Group
from alignkit.errors import did_you_mean
from alignkit_plugins.compare.compared import averages, scale_of, scores_of
from alignkit_plugins.compare.comparison import unit_of
from alignkit_plugins.evaluate.judged import Judged
from alignkit_plugins.evaluate.judged import preference as judged_preference

if TYPE_CHECKING:
    from alignkit.evaluation.ranking import Game

RIDGE = 0.1  # keeps the strength of a policy that always won finite
MISSING = "(none)"  # of prompts without the column
Compare = Callable[[Sequence[Group], str, str, str], Mapping[str, Any]]
# Policy -> judge -> its comparisons with the baseline
Verdicts = Mapping[str, Mapping[str, Judged]]


def rankings(
    groups: Sequence[Group], summary: Mapping[str, Any], verdicts: Verdicts, seed: int
) -> dict[str, Any]:
    """For each rater, the Bradley-Terry strength of each policy; empty for fewer than two policies.

    By a reward, all policies meet at each prompt; by a judge, each meets the baseline. A rater
    whose scores are all missing has no ranking.
    """
    policies = list(summary["policies"])
    if len(policies) < 2:
        return {}
    lower = {name for name, metric in summary["metrics"].items() if metric["better"] == "lower"}
    games = {
        name: _reward_games(groups, policies, name, name in lower) for name in summary["rewards"]
    }
    for judge in summary["judges"]:
        games[judge] = _judge_games(len(groups), str(summary["baseline"]), verdicts, judge)
    return {
        name: _ranking(rows, _met(rows, policies), seed, name)
        for name, rows in games.items()
        if any(rows)
    }


def _met(games: Sequence[Sequence[Game[str]]], policies: Sequence[str]) -> list[str]:
    """The policies that met another: a base that is only shown meets nobody before a judge."""
    met = {policy for row in games for one, other, _ in row for policy in (one, other)}
    return [policy for policy in policies if policy in met]


def _ranking(
    games: Sequence[Sequence[Game[str]]], policies: Sequence[str], seed: int, name: str
) -> dict[str, Any]:
    from alignkit.evaluation.ranking import ranked  # imports numpy

    found = ranked(games, policies, ridge=RIDGE, seed=seed, stream=name)
    best_first = sorted(found, key=lambda policy: -found[policy]["mean"])
    return {
        policy: {"strength": found[policy], "elo": _points(found[policy])} for policy in best_first
    }


def _points(strength: Mapping[str, Any]) -> dict[str, Any]:
    """A strength in Elo points; the mean of all policies is 1000."""
    from alignkit.evaluation.ranking import elo_gap

    ends = {key: 1000 + elo_gap(strength[key]) for key in ("mean", "low", "high")}
    return {**ends, "n": strength["n"]}


def _reward_games(
    groups: Sequence[Group], policies: Sequence[str], name: str, lower: bool
) -> list[list[Game[str]]]:
    scores = {policy: averages(groups, policy, name) for policy in policies}
    games: list[list[Game[str]]] = [[] for _ in groups]
    for one, other in itertools.combinations(policies, 2):
        for row, a, b in zip(games, scores[one], scores[other], strict=True):
            if a is not None and b is not None:
                row.append(
                    (one, other, 0.5 if a.score == b.score else float((a.score > b.score) != lower))
                )
    return games


def _judge_games(
    prompts: int, baseline: str, verdicts: Verdicts, judge: str
) -> list[list[Game[str]]]:
    games: list[list[Game[str]]] = [[] for _ in range(prompts)]
    for policy, found in verdicts.items():
        for row, p in zip(games, found[judge].preferences, strict=True):
            if p is not None:
                row.append((policy, baseline, p))
    return games


# --- by column


def by_columns(
    groups: Sequence[Group],
    columns: Sequence[str],
    summary: Mapping[str, Any],
    verdicts: Verdicts,
    compare: Compare,
) -> dict[str, Any]:
    """For each column and each of its values, the results at the prompts with this value.

    Raises DataError for a column that no prompt has.
    """
    return {column: _by_column(groups, column, summary, verdicts, compare) for column in columns}


def check_columns(groups: Sequence[Group], columns: Sequence[str]) -> None:
    """Raise DataError for a column that no prompt has."""
    known = sorted({name for group in groups for name in group.meta})
    for place, column in enumerate(columns):
        if column not in known:
            near = (
                did_you_mean(column, known)
                or f"the prompts have {', '.join(known) or 'no columns'}"
            )
            raise DataError(
                f"evaluate: by: no prompt has the column '{column}'\nhelp: {near}",
                option=("by", place),
            )


def _by_column(
    groups: Sequence[Group],
    column: str,
    summary: Mapping[str, Any],
    verdicts: Verdicts,
    compare: Compare,
) -> dict[str, Any]:
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        value = group.meta.get(column)
        places.setdefault(MISSING if value is None else str(value), []).append(place)
    return {
        value: _at(groups, at, summary, verdicts, compare) for value, at in sorted(places.items())
    }


def _at(
    groups: Sequence[Group],
    places: Sequence[int],
    summary: Mapping[str, Any],
    verdicts: Verdicts,
    compare: Compare,
) -> dict[str, Any]:
    """The results at some of the prompts, on the scales that the rewards have at all of them."""
    some, baseline, names = (
        [groups[place] for place in places],
        summary["baseline"],
        summary["rewards"],
    )
    scales = {name: scale_of(groups, name) for name in names}
    means = {
        policy: {
            name: scales[name].mean(*scores_of(averages(some, policy, name))) for name in names
        }
        for policy in summary["policies"]
    }
    against = {
        policy: {name: compare(some, policy, baseline, name) for name in rewards}
        for policy, rewards in summary["against"].items()
    }
    kept = ("difference", "win_rate", "wins", "losses", "ties")
    return {
        "prompts": len(some),
        "policies": means,
        "against": {
            policy: {name: {key: found[key] for key in kept} for name, found in rewards.items()}
            for policy, rewards in against.items()
        },
        "judged": {
            policy: {
                judge: judged_preference(*_known(groups, result, places))
                for judge, result in found.items()
            }
            for policy, found in verdicts.items()
        },
    }


def _known(
    groups: Sequence[Group], judged: Judged, places: Sequence[int]
) -> tuple[list[float], list[Any]]:
    """The preferences at some of the prompts, and what these share."""
    found = judged.preferences
    known = [(p, unit_of(groups[place])) for place in places if (p := found[place]) is not None]
    return [p for p, _ in known], [unit for _, unit in known]
