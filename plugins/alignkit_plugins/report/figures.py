"""Figures as SVG pictures, drawn by matplotlib; the same figure always gives the same bytes. Text
stays text.
"""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from alignkit.io.text import printable
from alignkit_plugins.report.curves import Figure, Series, worded

WIDTH, HEIGHT = 4.2, 2.4  # inches
INK, MUTED, GRID = "#1f2328", "#59636e", "#dfe4ea"
SERIES = ("#0072b2", "#c44e00", "#007a5a", "#a83d82", "#8a6100", "#2b7bb0", "#5b4ea1", "#4d4d4d")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LABEL = 28  # characters of a name in a figure
PLAIN = " !$*+,-./:;=?@[]_~{}|^"  # what may stand unescaped in the address of a picture
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignkit",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    # It would report fonts that it looks for
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that a font lacks, and of numbers that overflow
        matplotlib.rcdefaults()  # a person's own style must not change the report
        matplotlib.rcParams.update(_SETTINGS)
        canvas = Canvas(figsize=(WIDTH, HEIGHT), facecolor="white")
        FigureCanvasSVG(canvas)
        _draw(canvas, figure)
        file = io.StringIO()
        canvas.savefig(
            file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return file.getvalue()


def _draw(canvas: Any, figure: Figure) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    left = 0.19 if figure["y_label"] else 0.15
    axes = canvas.add_axes((left, 0.16, 0.97 - left, 0.74 if len(figure["series"]) > 1 else 0.8))
    axes.set_axisbelow(True)
    axes.margins(x=0.02, y=0.08)
    prefix = _prefix([series["name"] for series in figure["series"]])
    for index, series in enumerate(figure["series"]):
        named: Series = {
            **series,
            "name": series["name"].removeprefix(prefix) if prefix else worded(series["name"]),
        }
        _series(axes, named, index % len(SERIES))
    for mark in figure["marks"]:
        axes.axvline(mark, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    if figure["lines"]:
        axes.axvline(figure["lines"][0], color=MUTED, linewidth=0.8)
        axes.axhline(figure["lines"][1], color=MUTED, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=figure["x_label"] == "step"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(length=0)
    axes.set_xlabel(_label(figure["x_label"]), labelpad=2)
    axes.set_ylabel(_label(figure["y_label"]), labelpad=2)
    if sum(series["style"] != "path" for series in figure["series"]) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 0.98),
            ncols=3,
            borderpad=0,
            handlelength=1.8,
            columnspacing=1,
        )


def _series(axes: Any, series: Series, index: int) -> None:
    color, label, style = SERIES[index], _label(series["name"]), series["style"]
    x, y = series["x"], series["y"]
    if style == "line":
        axes.plot(x, y, color=color, linestyle=STYLES[index], linewidth=1.4, label=label)
    else:
        axes.plot(
            x, y, color=color, marker=MARKERS[index], markersize=4.5, linestyle="none", label=label
        )
        _bars(axes, series, color)
    if style == "path":
        pairs = list(zip(x, y, strict=True))
        for start, end in itertools.pairwise(pairs):
            axes.annotate(
                "",
                end,
                start,
                arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 3, "shrinkB": 3},
            )
    if series.get("labels"):
        axes.margins(x=0.15, y=0.12)
        middle = (min(x) + max(x)) / 2
        for at, name in enumerate(series["labels"]):
            left = x[at] <= middle
            place = {"ha": "left" if left else "right", "va": "bottom" if at % 2 else "top"}
            offset = (5 if left else -5, 4 if at % 2 else -4)
            axes.annotate(
                _label(name),
                (x[at], y[at]),
                offset,
                textcoords="offset points",
                fontsize=8,
                **place,
            )


def _bars(axes: Any, series: Any, color: str) -> None:
    """Intervals through each point."""
    unknown = [None] * len(series["x"])
    ends = (series.get(name, unknown) for name in ("low", "high", "x_low", "x_high"))
    for x, y, low, high, left, right in zip(series["x"], series["y"], *ends, strict=True):
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=color, linewidth=1)
        if left is not None and right is not None:
            axes.plot([left, right], [y, y], color=color, linewidth=1)


def _prefix(names: Sequence[str]) -> str:
    """`score/` of `score/helpful` and `score/safety`, which the title says already."""
    first = names[0].rpartition("/")[0] if len(names) > 1 else ""
    return f"{first}/" if first and all(name.startswith(f"{first}/") for name in names) else ""


def _label(text: str) -> str:
    # A leading underscore would hide it from the legend
    plain = printable(text).replace("\n", " ").lstrip("_")
    return plain if len(plain) <= LABEL else f"{plain[: LABEL - 1]}…"


def described(figure: Figure) -> str:
    """A figure in words, for those who cannot see it."""
    facts = [
        f"{worded(s['name'])} from {s['y'][0]:.4g} to {s['y'][-1]:.4g}"
        for s in figure["series"]
        if s["y"]
    ]
    return f"{figure['stage']}: {figure['title']}; {', '.join(facts[:8])}"


def drawn(figures: Sequence[Figure]) -> list[tuple[str, str, str]]:
    """The picture of each figure as an address with all its data, it in words, and a note.

    The address is empty if it cannot be drawn: one strange curve must not cost the report.
    """
    found = []
    for figure in figures:
        try:
            data = quote(svg(figure), safe=PLAIN)  # shorter than in base 64
            found.append((f"data:image/svg+xml,{data}", described(figure), figure["note"]))
        except Exception as error:  # matplotlib's, for numbers that it cannot scale
            found.append(
                ("", described(figure), f"could not be drawn: {type(error).__name__}: {error}")
            )
    return found
