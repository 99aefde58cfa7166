"""What a reader sees first: how policies compare, with intervals, and what changed in one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_plugins.evaluate.readable import bounds, short, shown
from alignkit_plugins.evaluate.tables import columns_of
from alignkit_plugins.evaluate.who_judged import GAINS, lower, own_of, percent

MOST = 6  # raters of the plot; the tables have all of them
MARGIN = 0.05  # of the plot, on each side of the widest intervals
BASE = "base"  # the name of the untouched base model


# The plot


def result_of(summary: Mapping[str, Any]) -> str | None:
    """The policy that an evaluation is about: the last one besides the baseline."""
    return next((str(name) for name in reversed(summary["policies"]) if name != summary.get("baseline")), None)


def intervals(summary: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A panel per rater: its name, a note, and a row per result with its estimate in words and in % of the width.

    middle: where a rater has no preference, in %, or None. Raises what an odd evaluation.json raises.
    """
    columns, result = columns_of(summary, pairs), result_of(summary)
    panels = []
    for name in [str(one) for one in summary["rewards"]][:MOST]:
        share, rows = percent(summary, name), []
        for policy, label, measured in columns:
            estimate = measured["rewards"].get(name)
            if bounds(estimate)[0] is not None:
                style = "base" if policy == BASE else "result" if (policy == result and measured["now"]) else ""
                rows.append((label, style, estimate, shown(estimate, percent=share)))
        notes = ["lower is better"] if lower(summary, name) else []
        notes += ["trained on: no proof"] if result and own_of(summary, result, name) else []
        panels.append(_panel(name, notes, rows, (0.0, 1.0) if share else None, None))
    for judge, rows in _preferences(summary, result).items():
        panels.append(_panel(f"preferred to {summary['baseline']} by {judge}", [], rows, (0.0, 1.0), 50.0))
    return [panel for panel in panels if panel["rows"]]


Row = tuple[str, str, Any, str]  # label, style, estimate and the estimate in words


def _preferences(summary: Mapping[str, Any], result: str | None) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for policy, judges in (summary.get("judged") or {}).items():
        for judge, one in judges.items():
            if bounds(one.get("preference"))[0] is not None:
                row = (str(policy), "result" if policy == result else "", one["preference"])
                found.setdefault(str(judge), []).append((*row, shown(one["preference"], percent=True)))
    return found


def _panel(
    title: str, notes: list[str], rows: Sequence[Row], ends: tuple[float, float] | None, middle: float | None
) -> dict[str, Any]:
    """ends: of the axis; None for as much as the intervals need."""
    values = [value for _, _, estimate, _ in rows for value in bounds(estimate) if value is not None]
    low, high = ends or (min(values, default=0.0), max(values, default=1.0))
    margin = 0.0 if ends else MARGIN * (high - low) or 1.0

    def at(value: float | None, otherwise: float) -> float:
        shown = otherwise if value is None else value
        return round(100 * min(1.0, max(0.0, (shown - low + margin) / (high - low + 2 * margin))), 1)

    placed = []
    for label, style, estimate, text in rows:
        mean, least, most = bounds(estimate)
        point = 0.0 if mean is None else mean
        left, right = at(least, point), at(most, point)
        where = {"left": left, "width": round(right - left, 1), "mean": at(mean, point)}
        placed.append({"label": label, "style": style, "text": text, **where})
    return {"title": title, "note": ", ".join(notes), "rows": placed, "middle": middle}


# One answer


def chosen(facts: Mapping[str, Any], verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The sample that shows best what a verdict says: of the largest gain or loss, or else one at random."""
    kinds = {**dict.fromkeys(GAINS.values(), "gain"), "mixed": "gain", "lost": "loss"}
    own = [one for one in facts["samples"] if one["stage"] == verdict["stage"]]
    wanted = kinds.get(verdict["outcome"], "random")
    return next((one for one in own if one["kind"] == wanted), own[0] if own else None)


def scored(score: float, reward: str, summary: Mapping[str, Any]) -> str:
    """`safe: yes` or `safe: no` by a measure that is a share, or `helpful: 0.42`."""
    words = {0.0: "no", 1.0: "yes"} if percent(summary, reward) else {}
    return f"{reward}: {words.get(score, short(score))}"
