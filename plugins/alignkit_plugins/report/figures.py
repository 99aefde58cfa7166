"""The charts of a run: which metrics share one, and what each is called."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.contract.reward import REWARD_KEY
from alignkit.io.results import json_lines
from alignkit_plugins.command_line.find import results_of_stage
from alignkit_plugins.compare.rows import RATED, Row, decides
from alignkit_plugins.compare.tables import cell
from alignkit_plugins.report import drawing
from alignkit_plugins.report.drawing import Drawing, Line, Point
from alignkit_plugins.text.readable import bounds, number

DRAWABLE = 3  # points of rewards against KL
LARGEST = 1e30  # that is drawn
CURVES = "metrics.jsonl"
NOT_METRICS = ("stage", "step", "time")
BINS = 12  # columns of a histogram
NORMAL = 1.96  # standard errors to the end of a 95% interval
NONE = Line([], [])
MARKS = {1: ("good", "better"), -1: ("bad", "worse"), 0: ("even", "unclear")}  # style and word

# Titles of panels and the metrics in them. The first ones that a stage has are those that its
# reader needs: a reward that rises with the length stands out.
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward", "best_reward"),
    "Response length, tokens": ("response_tokens",),
    "Reward by kind of prompt": ("kind/*/reward",),
    "Scores by kind of prompt": ("kind/*/score/*",),
    "KL to the reference, nats": ("kl",),
    "Entropy, nats per token": ("entropy", "sampled_entropy"),
    "Share of truncated responses": ("truncated",),
    "Clipped": ("clip_fraction", "value_clip_fraction", "scores_clipped"),
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
    """A chart. words: for those who cannot see it. note, mark: after its title; the style and the
    words of a comparison.
    """

    title: str
    drawing: Drawing
    words: str
    note: str = ""
    mark: tuple[str, str] = ("", "")


def worded(metric: str) -> str:
    """A metric's name in words: `score, helpful` for `score/helpful`."""
    return metric.replace("/", ", ").replace("_", " ")


def figures_of(facts: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures of a run's facts by stage, from the metrics in its folder, the most important
    first. After a swap, the curves of the earlier result are in the charts of the newest.
    """
    found = dict[str, list[Figure]]()
    for stage in facts["stages"]:
        name, folder = stage["name"], Path(facts["run"]["folder"], stage["name"])
        rows = json_lines(folder / CURVES)
        variants = {"": lines_of(rows)}
        earlier = results_of_stage(folder.parent, name)
        for one in facts["cells"]:
            if one["policy"] == name and one["against"] in earlier:
                before = json_lines(earlier[one["against"]] / CURVES)
                variants = {one["against"]: lines_of(before), one["result"]: lines_of(rows)}
        drawn = of_stage(name, variants)
        samples = histogram(name, sorted(folder.glob("rollouts/*.jsonl")))
        found[name] = [*drawn[:3], *reward_by_kl(name, rows), *samples, *drawn[3:]]
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
                    kind = metric.removeprefix("kind/").removesuffix("/reward")
                    kind = kind.replace("/score/", ": ").removeprefix("score/")
                    shown = name if several else worded(kind)
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
    for name, line in found.items():
        error = found.get(f"{name}_se", NONE)
        if error.x == line.x:
            near = zip(line.y, error.y, strict=True)
            band = [(y - NORMAL * se, y + NORMAL * se) for y, se in near]
            found[name] = line._replace(band=band)
    return found


def panels(lines: Mapping[str, Line]) -> dict[str, list[str]]:
    """The metrics of each panel by its title."""
    found = dict[str, list[str]]()
    for title, patterns in PANELS.items():
        for pattern in patterns:
            if own := fnmatch.filter(lines, pattern):
                found.setdefault(title, []).extend(own)
    return found


def reward_by_kl(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its deviations at
    the start (Gao et al. 2022, arXiv:2210.10760): where more KL begins to cost reward.

    Empty with fewer than DRAWABLE points.
    """
    keys = ["reward", *["gold"] * any("gold" in row for row in rows)]
    points, x = list[Mapping[str, Any]](), list[float]()
    for row in rows:
        if None not in [number(row.get(key)) for key in ("kl", *keys)]:
            points.append(row)
            x.append(round(math.sqrt(max(0.0, row["kl"])), 3))
    if len({*x}) < DRAWABLE:
        return []
    lines, note = dict[str, Line](), ""
    for key in keys:
        start, scale = points[0][key], points[0].get(f"{key}_std") or 1.0
        lines[key] = Line(x, [(row[key] - start) / scale for row in points], joined=False)
    if "gold" in keys:
        best = max(points, key=lambda point: point["gold"])
        note = f"gold was highest in iteration {best['step']}"
    about = f"{stage}: {' and '.join(keys).capitalize()} against KL"
    return [replace(curves(about, lines, "√KL, √nats"), note=note)]


def histogram(stage: str, files: Sequence[Path]) -> list[Figure]:
    """The rewards of a stage's first and last samples, from the files of its rollouts."""
    samples = dict[str, list[float]]()
    for file in (*files[:1], *files[1:][-1:]):
        scores = [one.get("scores", {}) for group in json_lines(file) for one in group["responses"]]
        rewards = map(number, [each.get(REWARD_KEY) for each in scores])
        samples[f"iteration {int(file.stem)}"] = [one for one in rewards if one is not None]
    every = [*chain(*samples.values())]
    if len(samples) < 2 or not all(samples.values()) or min(every) == max(every):
        return []
    low, width, lines = min(every), (max(every) - min(every)) / BINS, dict[str, Line]()
    for name, own in samples.items():
        counts = Counter(min(BINS - 1, int((reward - low) / width)) for reward in own)
        x, y = [low], [0.0]
        for at in range(BINS):  # steps
            x += [low + width * at, low + width * (at + 1)]
            y += [counts[at] / len(own)] * 2
        lines[name] = Line([*x, x[-1]], [*y, 0.0])
    title = f"{stage}: First and last rewards, shares"
    means = [f"{name} has mean {fmean(own):.4g}" for name, own in samples.items()]
    return [replace(curves(title, lines, "reward"), words=f"{title}; {', '.join(means)}")]


def intervals(
    rows: Sequence[Row], result: str = "", *, bare: bool = False, compared: Sequence[Row] = ()
) -> list[Figure]:
    """A chart per metric with a row per policy, and a line at the baseline. result: the policy that
    the evaluation is about.
    bare: without estimates in words. compared: rows of the result, for a mark at each chart.
    """
    metrics: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind in RATED and row.mean is not None:
            metrics.setdefault(row.metric, []).append(row)
    against = {row.metric: row for row in compared if row.clear is not None}
    return [_panel(found, result, bare, against.get(name)) for name, found in metrics.items()]


def _panel(rows: Sequence[Row], result: str, bare: bool, against: Row | None) -> Figure:
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
    baselines = {row.baseline for row in rows if decides(row)}
    marks = [row.mean for row in rows if row.policy in baselines and row.mean is not None]
    drawn = drawing.rows(points, percent=first.percent, marks=marks)
    words = f"{title}: {', '.join(texts)}"
    style, mark = "", ""
    if against is not None:
        style, mark = MARKS[against.clear or 0]
        mark += f", {cell(against, True)}"
        words += f"; {mark}"
        if against.trained_on is not False and style == "good":  # no proof
            style = "even"
    return Figure(title, drawn, words, ", ".join(notes), (style, mark))


def point_of(row: Row) -> Point:
    """The mean of a row, its interval, or the mean again, and the means of single seeds."""
    mean, low, high = bounds(row.estimate)
    if low is None or high is None:
        low = high = mean
    return Point(mean or 0.0, low or 0.0, high or 0.0, row.estimate.get("seeds", ()))
