"""The tables of a report, for its page, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from alignkit.evaluation.who_judged import lower_is_better, percent
from alignkit.report import Table
from alignkit_apps.report import judging
from alignkit_apps.report.numbers import duration, mapping, number, percentage, short, shown, size
from alignkit_apps.report.stages import flat

MOST_METRICS = 40  # of a stage, at its end
MOST_VALUES = 30  # of a column, the most frequent ones
RANKED = 3  # policies; a difference ranks two


def evaluation_tables(summary: Mapping[str, Any]) -> list[Table]:
    """All tables of an evaluation.json; those that cannot be made of what it holds are left out."""
    by = [by_column(summary, column) for column in mapping(summary.get("by"))]
    found = [policy_means(summary), comparison(summary), tolerant(judging.preferences)(summary), ranking(summary), *by]
    return [table for table in found if table is not None]


def tolerant(table: Callable[..., Table | None]) -> Callable[..., Table | None]:
    """Makes None of what a damaged or odd file holds."""

    @wraps(table)
    def made(*arguments: Any) -> Table | None:
        try:
            return table(*arguments)
        except (KeyError, TypeError, AttributeError, ValueError):
            return None

    return made


@tolerant
def policy_means(summary: Mapping[str, Any]) -> Table | None:
    """Means and intervals of an evaluation.json, a column per policy."""
    policies, rewards = dict(summary["policies"]), list(summary["rewards"])
    rows = [
        [str(name), *(shown(one["rewards"].get(name), percent=percent(summary, name)) for one in policies.values())]
        for name in rewards
    ]
    rows.append(["length, tokens", *(shown(one.get("length")) for one in policies.values())])
    rows.append(["cut off", *(percentage(one.get("truncated")) for one in policies.values())])
    if summary.get("reference") is not None:
        rows.append([f"KL to {summary['reference']}, nats", *(shown(one.get("kl")) for one in policies.values())])
    heads = [f"{name} (baseline)" if name == summary.get("baseline") else str(name) for name in policies]
    title = f"mean and 95% interval over {short(summary.get('prompts'))} prompts"
    return Table(title, ["", *heads], rows, note=lower_is_better(summary))


@tolerant
def comparison(summary: Mapping[str, Any]) -> Table | None:
    """The comparisons of an evaluation.json, a row per policy and reward; None if there are none."""
    rows = [
        [
            str(policy),
            str(reward),
            shown(result.get("difference"), sign=True, percent=percent(summary, reward)),
            shown(result.get("at_equal_length"), sign=True, percent=percent(summary, reward)),
            shown(result.get("win_rate"), percent=True),
            "/".join(short(result.get(name)) for name in ("wins", "losses", "ties")),
        ]
        for policy, rewards in (summary.get("against") or {}).items()
        for reward, result in rewards.items()
    ]
    if not rows:
        return None
    columns = ["policy", "reward", "difference", "at equal length", "win rate", "won/lost/tied"]
    note = "at equal length: '-' if too few prompts have answers of similar length"
    return Table(f"against {summary.get('baseline')}, prompt by prompt", columns, rows, keys=2, note=note)


@tolerant
def ranking(summary: Mapping[str, Any]) -> Table | None:
    """The policies by each rater, best first; None for fewer than RANKED."""
    if len(summary["policies"]) < RANKED:
        return None
    rows = [
        [str(rater), str(policy), str(place), shown(found["elo"], whole=True), shown(found["strength"], sign=True)]
        for rater, policies in (summary.get("ranking") or {}).items()
        for place, (policy, found) in enumerate(policies.items(), 1)
    ]
    if not rows:
        return None
    note = "Bradley-Terry; the mean of all policies is 1000 Elo points, or 0 nats"
    return Table("ranking", ["by", "policy", "place", "Elo", "strength, nats"], rows, keys=2, note=note)


@tolerant
def by_column(summary: Mapping[str, Any], column: str) -> Table | None:
    """For each value of a column, each policy against the baseline, or else its means."""
    values = summary["by"][column]
    kept = sorted(sorted(values, key=lambda value: -values[value]["prompts"])[:MOST_VALUES])
    rewards, judges = list(summary["rewards"]), list(summary.get("judges") or ())
    policies = list(summary["against"] or summary.get("judged") or summary["policies"])
    compared = bool(summary["against"] or summary.get("judged"))
    rows = []
    for value in kept:
        found = values[value]
        for policy in policies:
            if compared:
                differences = [(name, found["against"][policy][name]["difference"]) for name in rewards]
                cells = [shown(one, sign=True, percent=percent(summary, name)) for name, one in differences]
                cells += [_preferred(found["judged"][policy][name], found["prompts"]) for name in judges]
            else:
                means = found["policies"][policy]
                cells = [shown(means[name], percent=percent(summary, name)) for name in rewards]
            rows.append([str(value), str(policy), short(found["prompts"]), *cells])
    what = [f"{name}, difference" if compared else f"{name}, mean" for name in rewards]
    heads = [column, "policy", "prompts", *what, *(f"preferred by {name}" for name in judges if compared)]
    more = len(values) - len(kept)
    notes = [f"{more} rarer values are left out; evaluation.json has them"] if more else []
    notes += ["of many values, one in twenty seems to differ by chance"] if len(kept) > 2 and compared else []
    against = f", against {summary.get('baseline')}" if compared else ""
    return Table(f"by {column}{against}", heads, rows, keys=2, note="; ".join(notes))


def _preferred(preference: Mapping[str, Any], prompts: int) -> str:
    """`62% [31, 86]`, with the number of prompts if the rater has a preference at some of them only."""
    n = preference.get("n")
    return shown(preference, percent=True) + (f" of {n}" if n and n < prompts else "")


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """A row per stage."""
    rows = [
        [
            one["name"],
            one["plugin"],
            one["state"],
            one["hash"][:12] or "-",
            duration(one["seconds"]),
            short(one["tokens_per_second"]),
            size(one["bytes"]),
        ]
        for one in stages
    ]
    return Table("", ["stage", "by", "result", "hash", "time", "tokens/s", "on disk"], rows, keys=4)


def metrics_table(stage: Mapping[str, Any]) -> Table:
    """The first, last, least and largest value of each metric of a stage."""
    rows = [
        [name, *(short(number(values.get(key))) for key in ("first", "last", "min", "max"))]
        for name, values in list(stage["metrics"].items())[:MOST_METRICS]
    ]
    return Table(
        f"{stage['name']}: {stage['lines']} lines of metrics", ["metric", "first", "last", "least", "most"], rows
    )


def data_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per source that a stage read."""
    cells = [
        [
            str(row["stage"]),
            str(row["name"]),
            str(row["format"] or "-"),
            *(short(row[key]) for key in ("rows", "held_out", "skipped", "ties")),
            str(row["digest"] or "-")[:12],
        ]
        for row in rows
    ]
    columns = ["stage", "source", "format", "rows", "held out", "skipped", "ties", "SHA-256"]
    return Table("", columns, cells, keys=3)


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Keys and values of nested plain data."""
    return Table(title, ["", ""], [[key, short(value)] for key, value in flat(facts).items()], keys=2)
