"""What a stage learned, by examples that it never trains on: before its first step against its
result.

The unit is a conversation: examples with the same opening depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.evaluation import statistics
from alignkit.evaluation.statistics import interval_text

# Metrics, the one that a reader looks for first; of a loss, less is better
COMPARED = ("accuracy", "loss")
FEW_STEPS = 50
FEW_EXAMPLES = 20  # fewer show nothing of what a stage learned
# p values: below the first a difference is clear, below the second more likely than not
CLEAR, LEANS = 1 - statistics.CONFIDENCE, 0.5
FALLS = 0.95  # a loss has fallen if its last values are below this share of its first

Values = Mapping[str, Sequence[float]]


@dataclass
class HeldOut:
    """The value of each example before the first step, by metric, which checkpoints keep."""

    start: dict[str, list[float]] = field(default_factory=dict)

    def state(self) -> dict[str, list[float]]:
        return self.start

    def restore(self, state: dict[str, list[float]]) -> None:
        self.start = state


def values_of(
    parts: Iterable[Mapping[str, Mapping[int, Sequence[float]]]],
) -> dict[str, list[float]]:
    """A value for each example by metric, whose mean is the metric and whose spread gives its
    interval.

    parts: of each process, by metric, the sum of its values times weights and that of the weights
    of each example; the terms of the loss are `loss/NAME`. A ratio of sums is linearized (Cochran
    1977, "Sampling techniques", section 2.11).
    """
    sums: dict[str, dict[int, Sequence[float]]] = {}
    for part in parts:
        for name, own in part.items():
            sums.setdefault(name, {}).update(own)
    found: dict[str, list[float]] = {}
    places = sorted(set().union(*sums.values()))
    for name, groups in sums.items():
        metric = name.partition("/")[0] if name.startswith("loss/") else name
        values = _linear([groups.get(place, (0.0, 0.0)) for place in places])
        known = found.get(metric) or [0.0] * len(values)
        found[metric] = [one + other for one, other in zip(known, values, strict=True)]
    return {name: found[name] for name in COMPARED if name in found}


def _linear(sums: Sequence[Sequence[float]]) -> list[float]:
    """The values of one term; those of examples without weight are the mean, as they say nothing of
    it.
    """
    weights = [weight for _, weight in sums]
    if min(weights) == max(weights) > 0:
        return [total / weight for total, weight in sums]
    whole = sum(weights) or 1.0
    mean = sum(total for total, _ in sums) / whole
    return [mean + len(sums) * (total - mean * weight) / whole for total, weight in sums]


def compared(start: Values, result: Values, units: Sequence[Any]) -> dict[str, Any]:
    """The estimates of each metric before and after, and of their difference; for the summary of a
    stage.

    units: what each example shares with others.
    """
    found: dict[str, Any] = {"examples": len(units)}
    for name in COMPARED:
        if name in start and name in result:
            changes = statistics.differences(result[name], start[name])
            draws = statistics.clustered(changes, units)
            found[name] = {
                "start": _estimate(name, start[name], units),
                "result": _estimate(name, result[name], units),
                "difference": {
                    **statistics.estimate(draws),
                    "p": statistics.clustered_p(changes, units),
                },
            }
    return found


def _estimate(name: str, values: Sequence[float], units: Sequence[Any]) -> statistics.Estimate:
    draws = statistics.clustered(values, units)
    levels = statistics.levels_of(draws)
    found = statistics.rate(draws, levels=levels) if levels else statistics.estimate(draws)
    return statistics.of_share(found) if name == "accuracy" else found


# What a run says of a stage


def learned(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a stage learned, in words, by each metric; nothing if no number says so. rows: of its
    metrics.jsonl.
    """
    facts = [
        _change(name, summary["held_out"][name])
        for name in COMPARED
        if name in (summary.get("held_out") or {})
    ]
    if facts:
        facts[0] = f"held-out {facts[0]}"
    elif rewards := _curve(rows, "reward"):
        facts = [
            f"reward {rewards[0]:.3g} -> {rewards[-1]:.3g} on the prompts that it learned from"
        ]
    return facts


def _curve(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """The values of a metric, without those that are not finite, which are texts."""
    return [row[metric] for row in rows if isinstance(row.get(metric), int | float)]


def _change(name: str, one: Mapping[str, Any]) -> str:
    """`accuracy 50% -> 62% [55, 69]`"""
    percent = name == "accuracy"
    digits = statistics.decimals(one["result"])
    begin, end = (
        interval_text(each, percent=percent, digits=digits)
        for each in ({"mean": one["start"]["mean"]}, one["result"])
    )
    return f"{name} {begin} -> {end}"


def doubt(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What to change if a stage has learned nothing that its held-out examples show; empty if it
    has.

    rows: of its metrics.jsonl, the curves by which the advice goes.
    """
    held_out = summary.get("held_out") or {}
    differences = {name: held_out[name]["difference"] for name in COMPARED if name in held_out}
    better = {name: _side(name, difference) for name, difference in differences.items()}
    if not better:
        return ""
    count = held_out["examples"]
    examples = f"{count} held-out example{'s' * (count != 1)}"
    if count < FEW_EXAMPLES:
        return f"{examples} {'are' if count != 1 else 'is'} too few to say anything"
    if 1 in better.values():
        return ""
    losses = _curve(rows, "loss")
    part = max(1, len(losses) // 5)
    falls = bool(losses) and statistics.mean(losses[-part:]) < FALLS * statistics.mean(
        losses[:part]
    )
    worse = [name for name, side in better.items() if side == -1]
    got = f"got worse ({', '.join(worse)})" if worse else "learned nothing measurable"
    if all(_side(name, difference, LEANS) == 1 for name, difference in differences.items()):
        got, cure = "has no clear gain", "hold out more of them to see a gain as small as this"
    elif worse or falls:
        cure = "it fits its training data only: lower learning_rate or epochs, or add data"
    elif len(losses) < FEW_STEPS:
        cure = f"{len(losses)} steps are few: raise epochs or learning_rate, or add data"
    else:
        cure = "raise learning_rate, or check that the data say what to learn"
    return f"by its {examples} it {got}; {cure}"


def _side(metric: str, difference: Mapping[str, Any], below: float = CLEAR) -> int:
    """1 if a result is better, -1 if it is worse, and 0 if its p value is not below this."""
    if difference["p"] is None or difference["p"] >= below:
        return 0
    return 1 if (difference["mean"] < 0) == (metric == "loss") else -1
