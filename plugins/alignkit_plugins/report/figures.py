"""The charts of a run: which metrics share one, and what each is called."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit.io.results import json_lines
from alignkit_plugins.compare.rows import RATED, Row
from alignkit_plugins.compare.tables import cell
from alignkit_plugins.report import drawing
from alignkit_plugins.report.drawing import Drawing, Line, Point
from alignkit_plugins.text.readable import bounds, number

DRAWABLE = 3  # points of rewards against KL
LARGEST = 1e30  # that is drawn
NOT_METRICS = ("stage", "step", "time")
GOLD = "Reward and gold against KL"
NONE = Line([], [])

# Titles of panels and the metrics in them. The first ones that a stage has are those that its
# reader needs: a reward that rises with the length stands out.
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward", "best_reward"),
    "Response length, tokens": ("response_tokens",),
    "KL to the reference, nats": ("kl",),
    "Entropy, nats per token": ("entropy", "sampled_entropy"),
    "Share of truncated responses": ("truncated",),
    "Clipped": ("clip_fraction", "value_clip_fraction"),
    "Explained variance": ("explained_variance",),
    "Scores": ("score/*",),
    "Gold": ("gold",),
    "Loss": ("loss", "validation/loss"),
    "Accuracy": ("accuracy", "validation/accuracy"),
    "Rewards of better and worse": ("rewards/*",),
    "Gradient norm": ("grad_norm", "value_grad_norm"),
}


@dataclass(frozen=True)
class Figure:
    """A chart. words: for those who cannot see it. note: after its title."""

    title: str
    drawing: Drawing
    words: str
    note: str = ""


def worded(metric: str) -> str:
    """A metric's name in words: `score, helpful` for `score/helpful`."""
    return metric.replace("/", ", ").replace("_", " ")


def figures_of(facts: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures of a run's facts by stage, from the metrics in its folder, the most important
    first.
    """
    found = dict[str, list[Figure]]()
    for stage in facts["stages"]:
        name = stage["name"]
        rows = json_lines(Path(facts["run"]["folder"], name, "metrics.jsonl"))
        drawn = of_stage(name, {"": lines_of(rows)})
        found[name] = [*drawn[:2], *gold(name, rows), *drawn[2:]]
    return found


def of_stage(stage: str, variants: Mapping[str, Mapping[str, Line]]) -> list[Figure]:
    """The figures of a stage, with a line per variant, or per metric if there is one variant."""
    found, every = list[Figure](), dict[str, Line]()
    for own in variants.values():
        every |= own
    label = "iteration" if "response_tokens" in every else "step"
    several = len(variants) > 1
    for title, metrics in panels(every).items():
        for chart in [[metric] for metric in metrics] if several else [metrics]:
            lines = dict[str, Line]()
            for metric in chart:
                for name, own in variants.items():
                    shown = name if several else worded(metric.removeprefix("score/"))
                    lines[shown] = own.get(metric, NONE)  # the color of each is the same everywhere
            about = title if chart == metrics else worded(chart[0])
            key = not (several and found)
            found.append(curves(f"{stage}: {about}", lines, label, key))
    return found


def curves(about: str, lines: Mapping[str, Line], label: str, key: bool = True) -> Figure:
    """about: the stage and the title. label, key: see `drawing.curves`."""
    ends = list[str]()
    for name, (x, y, *_) in lines.items():
        if x:
            ends.append(f"{name} from {y[0]:.4g} to {y[-1]:.4g}")
    drawn = drawing.curves(lines, label, key)
    return Figure(about.partition(": ")[2], drawn, f"{about}; {', '.join(ends)}")


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and finite values of each metric, in the order in which metrics first occur."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for index, row in enumerate(rows, 1):
        for name, value in row.items():
            y = number(value)
            if name not in NOT_METRICS and y is not None:
                x, values = found.setdefault(name, ([], []))
                x.append(float(row.get("step", index)))
                values.append(y)
    return found


def lines_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """The line of each metric with several values. A few on held-out rows are dots only."""
    found = dict[str, Line]()
    for name, (x, y) in series_of(rows).items():
        if len(y) > 1 and max(map(abs, y)) < LARGEST:
            found[name] = Line(x, y, joined=not name.startswith("validation/"))
    return found


def panels(lines: Mapping[str, Line]) -> dict[str, list[str]]:
    """The metrics of each panel by its title."""
    found = dict[str, list[str]]()
    for title, patterns in PANELS.items():
        for pattern in patterns:
            if own := fnmatch.filter(lines, pattern):
                found.setdefault(title, []).extend(own)
    return found


def gold(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its deviations at
    the start (Gao et al. 2022, arXiv:2210.10760): where more KL begins to cost reward.

    Empty with fewer than DRAWABLE points.
    """
    points, x = list[Mapping[str, Any]](), list[float]()
    for row in rows:
        if None not in [number(row.get(key)) for key in ("kl", "reward", "gold")]:
            points.append(row)
            x.append(math.sqrt(max(0.0, row["kl"])))
    if len({*x}) < DRAWABLE:
        return []
    lines = dict[str, Line]()
    for key in ("reward", "gold"):
        start, scale = points[0][key], points[0].get(f"{key}_std") or 1.0
        lines[key] = Line(x, [(row[key] - start) / scale for row in points], joined=False)
    best = max(points, key=lambda point: point["gold"])
    note = f"gold was highest in iteration {best['step']}"
    drawn = curves(f"{stage}: {GOLD}", lines, "√KL, √nats")
    return [replace(drawn, note=note)]


def intervals(rows: Sequence[Row], result: str = "", *, bare: bool = False) -> list[Figure]:
    """A chart per metric with a row per policy. result: the policy that the evaluation is about.
    bare: without estimates in words.
    """
    metrics: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind in RATED and row.estimate.get("mean") is not None:
            metrics.setdefault(row.metric, []).append(row)
    return [_panel(found, result, bare) for found in metrics.values()]


def _panel(rows: Sequence[Row], result: str, bare: bool) -> Figure:
    first, points, texts = rows[0], dict[str, Point](), list[str]()
    notes, title = ["lower is better"] * first.lower, first.metric
    if any(row.policy == result and row.trained_on for row in rows):
        notes.append("trained on it: no proof")
    if first.kind == "judge":
        title = f"preferred to {first.baseline} by {first.metric}"
    for row in rows:
        style = {result: "result", "base": "base"}.get(row.policy, "")
        texts.append(f"{row.policy} {cell(row)}")
        points[row.policy if bare else texts[-1]] = point_of(row)._replace(style=style)
    drawn = drawing.rows(points, percent=first.percent)
    return Figure(title, drawn, f"{title}: {', '.join(texts)}", ", ".join(notes))


def point_of(row: Row) -> Point:
    """The mean of a row, its interval, or the mean again, and the means of single seeds."""
    mean, low, high = bounds(row.estimate)
    if low is None or high is None:
        low = high = mean
    return Point(mean or 0.0, low or 0.0, high or 0.0, row.estimate.get("seeds", ()))
