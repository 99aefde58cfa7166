"""What a reader of the page sees first: how policies compare, with intervals, and what changed in
one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_plugins.compare.readable import bounds, short
from alignkit_plugins.compare.rows import RATED, Row
from alignkit_plugins.compare.tables import cell
from alignkit_plugins.compare.verdicts import GAINS

MOST = 6  # metrics of the plot; the tables have all of them
MARGIN = 0.05  # of the plot, on each side of the widest intervals
BASE = "base"  # the name of the base model


def intervals(rows: Sequence[Row], result: str) -> list[dict[str, Any]]:
    """A panel per metric: its name, a note, and a row per policy with its estimate in words and in
    % of the width.

    middle: where a judge has no preference, in %, or None. result: the policy that the evaluation
    is about.
    """
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind in RATED and bounds(row.estimate)[0] is not None:
            panels.setdefault(row.metric, []).append(row)
    return [_panel(found, result) for found in list(panels.values())[:MOST]]


def _panel(rows: Sequence[Row], result: str) -> dict[str, Any]:
    first, judged = rows[0], rows[0].kind == "judge"
    notes = ["lower is better"] if first.lower else []
    notes += (
        ["trained on it: no proof"]
        if any(row.policy == result and row.trained_on for row in rows)
        else []
    )
    values = [value for row in rows for value in bounds(row.estimate) if value is not None]
    low, high = (0.0, 1.0) if first.percent else (min(values), max(values))
    margin = 0.0 if first.percent else MARGIN * (high - low) or 1.0

    def at(value: float | None, otherwise: float) -> float:
        shown = otherwise if value is None else value
        return round(
            100 * min(1.0, max(0.0, (shown - low + margin) / (high - low + 2 * margin))), 1
        )

    placed = []
    for row in rows:
        mean, least, most = bounds(row.estimate)
        point = 0.0 if mean is None else mean
        left, right = at(least, point), at(most, point)
        style = "result" if row.policy == result else "base" if row.policy == BASE else ""
        where = {"left": left, "width": round(right - left, 1), "mean": at(mean, point)}
        placed.append({"label": row.policy, "style": style, "text": cell(row), **where})
    title = f"preferred to {first.baseline} by {first.metric}" if judged else first.metric
    return {
        "title": title,
        "note": ", ".join(notes),
        "rows": placed,
        "middle": 50.0 if judged else None,
    }


def chosen(facts: Mapping[str, Any], verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The sample that shows best what a verdict says: of the largest gain or loss, or else one at
    random.
    """
    kinds = {**dict.fromkeys(GAINS.values(), "gain"), "mixed": "gain", "lost": "loss"}
    own = [one for one in facts["samples"] if one["stage"] == verdict["stage"]]
    wanted = kinds.get(verdict["outcome"], "random")
    return next((one for one in own if one["kind"] == wanted), own[0] if own else None)


def scored(score: float, reward: str, rows: Sequence[Row]) -> str:
    """`safe: yes` or `safe: no` by a metric that is a share, or `helpful: 0.42`."""
    percent = any(row.percent for row in rows if row.metric == reward)
    words = {0.0: "no", 1.0: "yes"} if percent else {}
    return f"{reward}: {words.get(score, short(score))}"
