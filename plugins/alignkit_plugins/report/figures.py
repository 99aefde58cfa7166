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
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alignkit.io.results import json_lines
from alignkit.io.text import printable
from alignkit_plugins.text.readable import number
from alignkit_plugins.text.rows import cut

SIZE = (4.2, 2.4)  # inches
LABEL = 28  # characters of a name in a figure
DRAWABLE = 3  # points of rewards against KL
LARGEST = 1e30  # that is drawn
PLAIN = " !$*+,-./:;=?@[]_~{}|^"  # what may stand unescaped in the address of a picture
NOT_METRICS = ("stage", "step", "time")
GOLD = "Reward and gold against KL"

# Titles of panels and the metrics in them, of which `*` ends a prefix. The first ones that a stage
# has are those that its reader needs.
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward", "best_reward", "return"),
    "KL to the reference, nats": ("kl",),
    "Loss": ("loss", "validation/loss"),
    "Accuracy": ("accuracy", "validation/accuracy"),
    "Gold": ("gold",),
    "Scores": ("score/*",),
    "Rewards of better and worse": ("rewards/*",),
    "Entropy, nats per token": ("entropy", "sampled_entropy"),
    "Response length, tokens": ("response_tokens",),
    "Clipped": ("clip_fraction", "value_clip_fraction"),
    "Gradient norm": ("grad_norm", "value_grad_norm"),
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
    """A picture. address: with all its data. words: for those who cannot see it. note: below
    it.
    """

    stage: str
    title: str
    address: str
    words: str
    note: str = ""


def figures_of(facts: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures of a run's facts by stage, from the metrics in its folder, the most important
    first.
    """
    found = dict[str, list[Figure]]()
    for stage in facts["stages"]:
        name = stage["name"]
        rows = json_lines(Path(facts["run"]["folder"], name, "metrics.jsonl"))
        found[name] = gold(name, rows)
        for title, series in panels(rows).items():
            found[name].append(_figure(name, title, series, curves(series)))
    return found


def worded(metric: str) -> str:
    """A metric's name in words: `score, helpful` for `score/helpful`."""
    return metric.replace("/", ", ").replace("_", " ")


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
    """The series of each panel by its title. Metrics with one value have none."""
    found = dict[str, Series]()
    every = series_of(rows)
    for title, names in PANELS.items():
        panel = dict[str, Any]()
        for name, (x, y) in every.items():
            named = name in names or f"{name.partition('/')[0]}/*" in names
            if named and len(x) > 1 and max(map(abs, y)) < LARGEST:
                panel[name] = x, y
        if panel:
            found[title] = panel
    return found


def _figure(
    stage: str, title: str, series: Series, draw: Callable[[Any], None], note: str = ""
) -> Figure:
    ends = [f"{worded(name)} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items()]
    address = f"data:image/svg+xml,{quote(svg(draw), safe=PLAIN)}"  # shorter than in base 64
    return Figure(stage, title, address, f"{stage}: {title}; {', '.join(ends)}", note)


def svg(draw: Callable[[Any], None]) -> str:
    """The text of an SVG file. draw: draws into matplotlib's axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would report fonts
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font may lack signs, and numbers may overflow
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
    return cut(printable(worded(text)).replace("\n", " "), LABEL, "…")


def gold(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its deviations at
    the start (Gao et al. 2022, arXiv:2210.10760): where more KL begins to cost reward.

    A dotted line marks where gold was highest. Empty with fewer than DRAWABLE points.
    """
    points, x = list[Mapping[str, Any]](), list[float]()
    for row in rows:
        if None not in [number(row.get(key)) for key in ("kl", "reward", "gold")]:
            points.append(row)
            x.append(math.sqrt(max(0.0, row["kl"])))
    if len({*x}) < DRAWABLE:
        return []
    series = dict[str, Any]()
    for key in ("reward", "gold"):
        start, scale = points[0][key], points[0].get(f"{key}_std") or 1.0
        series[key] = x, [(row[key] - start) / scale for row in points]
    best = max(range(len(points)), key=lambda at: points[at]["gold"])
    note = f"gold was highest in iteration {points[best]['step']}, at the dotted line"

    def draw(axes: Any) -> None:
        for (name, (_, y)), color, marker in zip(series.items(), COLORS, "os", strict=False):
            axes.plot(x, y, color=color, marker=marker, linestyle="none", label=name)
        axes.set_ylabel("gain, deviations")
        axes.axvline(x[best], color="#59636e", linewidth=0.9, linestyle=":")
        _finish(axes, "√KL, √nats", legend=True)

    return [_figure(stage, GOLD, series, draw, note)]
