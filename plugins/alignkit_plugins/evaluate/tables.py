"""Tables of an evaluation.json, for the report of the step and that of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.report import Table
from alignkit_plugins.evaluate.readable import mapping, percentage, short, shown
from alignkit_plugins.evaluate.who_judged import lower_is_better, percent

MOST_VALUES = 30  # of a column, the most frequent ones


def columns_of(
    summary: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]] = ()
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Policy, name and measurements of each result, earlier ones before the policy's current one, which is `now`."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for policy, measured in summary["policies"].items():
        own = [pair for pair in pairs if pair["policy"] == policy and pair["results"]]
        for pair in reversed(own):
            was = {name: one["was"] for name, one in pair["results"].items()}
            found.append((str(policy), pair["against"], {"rewards": was, "length": was.get("tokens"), "now": False}))
        found.append((str(policy), own[0]["result"] if own else str(policy), {**measured, "now": True}))
    return found


def policy_means(summary: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]] = ()) -> Table:
    """Means and intervals of an evaluation.json, a column per result."""
    columns = columns_of(summary, pairs)
    results = [measured for _, _, measured in columns]
    rows = []
    for name in map(str, summary["rewards"]):
        scores = [one["rewards"].get(name) for one in results]
        rows.append([name, *(shown(score, percent=percent(summary, name)) for score in scores)])
        rows += _missing(scores, "unscored")
    rows.append(["length, tokens", *(shown(one.get("length")) for one in results)])
    rows.append(["cut off", *(percentage(one.get("truncated")) for one in results)])
    if summary.get("variants"):
        costs = [mapping(one.get("tokens")) for one in results]
        rows += [[f"tokens {what}", *(short(cost.get(what)) for cost in costs)] for what in ("read", "written")]
    if summary.get("reference") is not None:
        rows.append([f"KL to {summary['reference']}, nats", *(shown(one.get("kl")) for one in results)])
        rows += _missing([one.get("kl") for one in results], "unmeasured")
    heads = [f"{label} (baseline)" if policy == summary.get("baseline") else label for policy, label, _ in columns]
    left_out = f", {summary['left_out']} left out for lack of room" if summary.get("left_out") else ""
    title = f"mean and 95% interval over {short(summary.get('prompts'))} prompts{left_out}"
    return Table(title, ["", *heads], rows, note=lower_is_better(summary))


def _missing(estimates: Sequence[Any], what: str) -> list[list[str]]:
    """A row of counts if values are missing."""
    counts = [mapping(estimate).get(what) for estimate in estimates]
    return [[f"  {what}", *map(short, counts)]] if any(counts) else []


def by_column(summary: Mapping[str, Any], column: str) -> Table:
    """For each value of a column, each policy against the baseline, or else its means."""
    values = summary["by"][column]
    kept = sorted(sorted(values, key=lambda value: -values[value]["prompts"])[:MOST_VALUES])
    rewards = [name for name in summary["rewards"] if name in next(iter(values[kept[0]]["policies"].values()))]
    judges = list(summary.get("judges") or ())
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
