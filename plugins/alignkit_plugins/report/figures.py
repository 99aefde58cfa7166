"""Curves of a run as SVG pictures, drawn by matplotlib: the same numbers always give the same
bytes, and text stays text.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alignkit.io.text import printable
from alignkit_plugins.compare.readable import bounds, number, short
from alignkit_plugins.compare.rows import Row, rows_of
from alignkit_plugins.report.history import json_lines

SIZE = (4.2, 2.4)  # inches
LABEL = 28  # characters of a name in a figure
DRAWABLE = 3  # points of rewards against KL
PLAIN = " !$*+,-./:;=?@[]_~{}|^"  # what may stand unescaped in the address of a picture
NOT_METRICS = ("stage", "step", "time")
UNDRAWN = ("epoch", "tokens_per_second", "unscored", "replayed", "skipped", "gold_std", "seconds")
GOLD = "Reward and gold against KL"
MAIN = (GOLD, "Reward", "KL to the reference, nats", "Loss", "Accuracy")
MOST = 14  # panels of a stage
SHOWN = 2  # of MAIN, the first that a stage has; the others on demand

# Titles of panels and the metrics in them, of which `*` ends a prefix; others have a panel each.
PANELS: dict[str, tuple[str, ...]] = {
    "Loss": ("loss", "validation/loss"),
    "Reward": ("reward", "best_reward", "return"),
    "Gold": ("gold",),
    "Scores": ("score/*",),
    "KL to the reference, nats": ("kl",),
    "Accuracy": ("accuracy", "validation/accuracy"),
    "Rewards of better and worse": ("rewards/*",),
    "Entropy, nats per token": ("entropy", "sampled_entropy"),
    "Repetition, hedges, confidence words, shares": ("repetition", "hedges", "confidence"),
    "Diversity": ("distinct_1", "distinct_2", "self_bleu"),
    "Response length, tokens": ("response_tokens",),
    "Clipped": ("clip_fraction", "value_clip_fraction"),
    "KL of an update, nats": ("approx_kl",),
    "Gradient norm": ("grad_norm", "value_grad_norm"),
    "Spread of the reward": ("reward_std",),
    "Weights of importance, shares": ("importance_capped", "importance_masked"),
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignkit",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": "#59636e",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dfe4ea",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
COLORS = ("#0072b2", "#c44e00", "#007a5a", "#a83d82", "#8a6100", "#5b4ea1", "#4d4d4d")
LINES = ("-", "--", "-.", ":")

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y by name


@dataclass(frozen=True)
class Figure:
    """A picture. address: with all its data; empty if it cannot be drawn. words: for those who
    cannot see it. note: below it.
    """

    stage: str
    title: str
    address: str
    words: str
    note: str = ""


def figures_of(facts: Mapping[str, Any]) -> list[Figure]:
    """The figures of a run's facts, from the metrics in its folder."""
    found = list[Figure]()
    for stage in facts["stages"]:
        name = stage["name"]
        rows = json_lines(Path(facts["run"]["folder"], name, "metrics.jsonl"))
        for title, series in panels(rows).items():
            found.append(_figure(name, title, series, curves(series)))
        found += gold(name, rows)
    for item in facts["evaluations"]:
        found += alignment_path(item["stage"], rows_of(item["evaluation"]))
    return found


def worded(metric: str) -> str:
    """A metric's name in words: `score, helpful` for `score/helpful`."""
    return metric.replace("/", ", ").replace("_", " ")


def main_first(figures: Sequence[Figure]) -> tuple[list[Figure], list[Figure]]:
    """The figures that a reader of a stage needs, at most SHOWN, and the others."""
    by_title = {figure.title: figure for figure in figures}
    main = [by_title[title] for title in MAIN if title in by_title][:SHOWN]
    return main, [figure for figure in figures if figure not in main]


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


def panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The series of each panel by its title. Metrics with one value, or with those of another one,
    have none.
    """
    found = {title: dict[str, Any]() for title in PANELS}
    drawn, every = list[Any](), series_of(rows)
    for name in sorted(every, key=lambda name: _title(name) not in PANELS):
        series = every[name]
        skipped = name.partition("/")[0] in UNDRAWN or series in drawn
        if len(series[0]) > 1 and not skipped:
            drawn.append(series)
            found.setdefault(_title(name), {})[name] = series
    drawable = [(title, panel) for title, panel in found.items() if panel]
    return dict(drawable[:MOST])


def _title(metric: str) -> str:
    prefix = f"{metric.partition('/')[0]}/*"
    for title, names in PANELS.items():
        if metric in names or prefix in names:
            return title
    return worded(metric).capitalize()


def _figure(
    stage: str, title: str, series: Series, draw: Callable[[Any], None], note: str = ""
) -> Figure:
    ends = [f"{worded(name)} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items()]
    words = f"{stage}: {title}; {', '.join(ends[:8])}"
    try:
        address = f"data:image/svg+xml,{quote(svg(draw), safe=PLAIN)}"  # shorter than in base 64
    except Exception as error:  # one strange curve must not cost the report
        return Figure(stage, title, "", words, f"could not be drawn: {type(error).__name__}")
    return Figure(stage, title, address, words, note)


def svg(draw: Callable[[Any], None]) -> str:
    """The text of an SVG file. draw: draws into matplotlib's axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would report fonts
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that a font lacks, and of numbers that overflow
        matplotlib.rcdefaults()  # a person's own style must not change the report
        matplotlib.rcParams.update(STYLE)
        canvas = Canvas(figsize=SIZE, layout="constrained", facecolor="white")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        axes.tick_params(length=0)
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(file, format="svg", metadata=metadata)
    return file.getvalue()


def curves(series: Series) -> Callable[[Any], None]:
    """Draws a line per series over steps."""

    def draw(axes: Any) -> None:
        for at, (name, (x, y)) in enumerate(series.items()):
            style = {"color": COLORS[at % len(COLORS)], "linestyle": LINES[at % len(LINES)]}
            axes.plot(x, y, label=_label(name.removeprefix("score/")), **style)
        _finish(axes, "step", len(series) > 1)

    return draw


def _finish(axes: Any, x_label: str, legend: bool) -> None:
    axes.set_xlabel(x_label)
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=3, borderpad=0)


def _label(text: str) -> str:
    plain = printable(worded(text)).replace("\n", " ").lstrip("_")  # else the legend hides it
    if len(plain) <= LABEL:
        return plain
    return f"{plain[: LABEL - 1]}…"


def gold(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its deviations at
    the start (Gao et al. 2022, arXiv:2210.10760): where more KL begins to cost reward.

    A dotted line marks where gold was highest. Empty with fewer than DRAWABLE points.
    """
    keys = ("kl", "reward", "gold")
    points = list[Mapping[str, Any]]()
    for row in rows:
        if None not in map(number, map(row.get, keys)):
            points.append(row)
    scales = [row for row in rows if row.get("reward_std") and row.get("gold_std")]
    if len({row["kl"] for row in points}) < DRAWABLE or not scales:
        return []
    x = [math.sqrt(max(0.0, row["kl"])) for row in points]
    gains = dict[str, list[float]]()
    for key in keys[1:]:
        start, scale = points[0][key], scales[0][f"{key}_std"]
        gains[key] = [(row[key] - start) / scale for row in points]
    best = max(range(len(points)), key=gains["gold"].__getitem__)
    place = f"iteration {points[best]['step']:.0f}, at a KL of {short(points[best]['kl'])} nats"
    lost, won = (gains[key][-1] - gains[key][best] for key in ("gold", "reward"))
    since = f"since then gold changed by {lost:+.2g} and the reward by {won:+.2g} deviations"
    if best == len(points) - 1:
        since = "the last one: no over-optimization so far"
    note = f"gold was highest in {place}; {since}"

    def draw(axes: Any) -> None:
        for (name, y), color, marker in zip(gains.items(), COLORS, "os", strict=False):
            axes.plot(x, y, color=color, marker=marker, linestyle="none", label=name)
        axes.set_ylabel("gain, deviations")
        axes.axvline(x[best], color="#59636e", linewidth=0.9, linestyle=":")
        _finish(axes, "√KL, √nats", legend=True)

    series = {name: (x, y) for name, y in gains.items()}
    return [_figure(stage, GOLD, series, draw, note)]


def alignment_path(stage: str, rows: Sequence[Row]) -> list[Figure]:
    """Helpfulness against harmlessness by version, as in Llama 2's figure 11 (Touvron et al. 2023,
    arXiv:2307.09288).

    The path of the policies by win rate against the baseline, by the first two rewards, in %; none
    without two. The baseline itself is in the middle. rows: of the evaluation.
    """
    rated = [row for row in rows if row.kind == "reward" and row.difference and not row.column]
    names = list(dict.fromkeys(row.metric for row in rated))
    if len(names) < 2:
        return []
    rates = {(row.policy, row.metric): row.win_rate for row in rated}
    baseline, half = rated[0].baseline, (0.5, 0.5, 0.5)
    ends = {baseline: (half, half)}
    for policy in dict.fromkeys(row.policy for row in rated):
        first, second = (bounds(rates.get((policy, name))) for name in names[:2])
        if None not in (*first, *second):
            ends[policy] = (first, second)  # type: ignore[assignment]
    if len(ends) < 2:
        return []
    means = [(100 * x[0], 100 * y[0]) for x, y in ends.values()]

    def draw(axes: Any) -> None:
        for name, mean, each in zip(ends, means, ends.values(), strict=True):
            errors = [[[100 * (one - low)], [100 * (high - one)]] for one, low, high in each]
            axes.errorbar(*mean, errors[1], errors[0], "o", color=COLORS[0], linewidth=1)
            axes.annotate(_label(name), mean, (5, 4), textcoords="offset points", fontsize=8)
        for start, end in pairwise(means):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": COLORS[0]})
        axes.set_ylabel(_label(names[1]))
        _finish(axes, _label(names[0]), legend=False)

    title = f"{names[0]} against {names[1]}, by version"
    note = f"win rates in % against {baseline}, which is at 50%, with 95% intervals"
    series = {"versions": ([x for x, _ in means], [y for _, y in means])}
    return [_figure(stage, title, series, draw, note)]
