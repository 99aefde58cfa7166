"""Figures as SVG for a page in light and dark, drawn by matplotlib; the same figure always gives the same bytes.

Text stays text. Colors are placeholders that become the page's CSS variables, so one drawing serves both themes.
"""

from __future__ import annotations

import html
import io
import itertools
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

from alignkit.io.printable import printable
from alignkit_apps.charts.curves import Figure, Series, worded

WIDTH, HEIGHT = 4.2, 2.4  # inches
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0101{index:02d}" for index in range(10, 18))  # placeholders of the palette
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LABEL = 28  # characters of a name in a figure
TICKS = 56  # characters of all names of bars
_LONG = re.compile(r"-?\d+\.\d{3,}")  # numbers with needless digits
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
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
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify": False,
}


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for a page. name: unique on the page, in front of all ids."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would report fonts that it looks for
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that a font lacks, and of numbers that overflow
        matplotlib.rcdefaults()  # a person's own style must not change the report
        matplotlib.rcParams.update(_SETTINGS)
        canvas = Canvas(figsize=(WIDTH, HEIGHT), facecolor="none")
        FigureCanvasSVG(canvas)
        _draw(canvas, figure)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _for_a_page(file.getvalue(), figure, name)


def _draw(canvas: Any, figure: Figure) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    left = 0.19 if figure["y_label"] else 0.15
    axes = canvas.add_axes((left, 0.16, 0.97 - left, 0.74 if len(figure["series"]) > 1 else 0.8))
    axes.set_axisbelow(True)
    axes.margins(x=0.02, y=0.08)
    prefix = _prefix([series["name"] for series in figure["series"]])
    for index, series in enumerate(figure["series"]):
        named: Series = {**series, "name": series["name"].removeprefix(prefix) if prefix else worded(series["name"])}
        if series["style"] == "bars":
            _bar_chart(axes, named, index, len(figure["series"]))
        else:
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
    _below_bars(axes, figure["series"])
    axes.set_xlabel(_label(figure["x_label"]), labelpad=2)
    axes.set_ylabel(_label(figure["y_label"]), labelpad=2)
    if sum(series["style"] != "path" for series in figure["series"]) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=3, borderpad=0, handlelength=1.8, columnspacing=1)
    _names(axes, figure["series"])


def _series(axes: Any, series: Series, index: int) -> None:
    color, label, style = SERIES[index], _label(series["name"]), series["style"]
    x, y = series["x"], series["y"]
    if style == "line":
        axes.plot(x, y, color=color, linestyle=STYLES[index], linewidth=1.4, label=label)
    elif style == "fit":
        axes.plot(x, y, color=color, linestyle=STYLES[1], linewidth=1.2, label=label)
    else:
        axes.plot(x, y, color=color, marker=MARKERS[index], markersize=4.5, linestyle="none", label=label)
        _bars(axes, series, color)
    if style == "path":
        pairs = list(zip(x, y, strict=True))
        for start, end in itertools.pairwise(pairs):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 3, "shrinkB": 3})
    if series.get("labels"):
        axes.margins(x=0.15, y=0.12)


def _names(axes: Any, found: Sequence[Series]) -> None:
    """The names of points, next to them."""
    from matplotlib.transforms import Bbox

    axes.autoscale_view()
    named = [series for series in found if series["style"] != "bars" and series.get("labels")]
    points = [point for series in named for point in zip(series["x"], series["y"], strict=True)]
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in map(axes.transData.transform, points)]
    for series in named:
        for at in range(len(series["x"])):
            taken.append(_named(axes, series, at, taken))


def _named(axes: Any, series: Series, at: int, taken: Sequence[Any]) -> Any:
    """Write a point's name where it covers no other name or point, if there is such a place. Returns its box."""
    x, y = series["x"], series["y"]
    right, above = x[at] <= (min(x) + max(x)) / 2, y[at] >= (min(y) + max(y)) / 2
    places = [*itertools.product((0, 9, 18), (right, not right), (above, not above)), (0, right, above)]
    for left, (far, to_right, up) in enumerate(places, 1 - len(places)):
        place = {"ha": "left" if to_right else "right", "va": "bottom" if up else "top"}
        offset = (5 if to_right else -5, (4 + far) * (1 if up else -1))
        name = _label(series["labels"][at])
        note = axes.annotate(name, (x[at], y[at]), offset, textcoords="offset points", fontsize=8, **place)
        box = note.get_window_extent()
        free = not any(box.overlaps(other) for other in taken) and axes.figure.bbox.contains(box.x0, box.y0)
        if left == 0 or (free and axes.figure.bbox.contains(box.x1, box.y1)):
            return box
        note.remove()
    raise AssertionError("the last place is always taken")


def _bar_chart(axes: Any, series: Series, index: int, count: int) -> None:
    """Bars of one series next to those of the others. A pattern tells them apart without colors."""
    width, color = 0.8 / count, SERIES[index % len(SERIES)]
    at = [x - 0.4 + width * (index + 0.5) for x in series["x"]]
    face = color if index == 0 else "none"
    axes.bar(at, series["y"], width, label=_label(series["name"]), facecolor=face, edgecolor=color, linewidth=1)
    axes.grid(visible=False, axis="x")


def _below_bars(axes: Any, found: Sequence[Series]) -> None:
    """The names of bars, as many as there is room for."""
    labels = next((series.get("labels") for series in found if series["style"] == "bars"), None)
    if labels:
        step = 1 + sum(len(label) + 2 for label in labels) // TICKS
        shown = range(0, len(labels), step)
        axes.set_xticks(list(shown), [_label(labels[at]) for at in shown])


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
    plain = printable(text).replace("\n", " ").lstrip("_")  # a leading underscore would hide it from the legend
    return plain if len(plain) <= LABEL else f"{plain[: LABEL - 1]}…"


def _for_a_page(text: str, figure: Figure, name: str) -> str:
    """The element without what only files need, with ids and colors of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # which nothing refers to
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"|<g/>', "", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda match: _LONG.sub(_rounded, match[0]), text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = re.sub(r" font-family: [^;]+;", "", text)  # the page's
    label = html.escape(printable(described(figure)), quote=True)
    head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH * 72:.1f} {HEIGHT * 72:.1f}">'
    body = text[text.index(">") + 1 :]
    return head + re.sub(r"\s*\n\s*", "\n", body).strip()


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def described(figure: Figure) -> str:
    """A figure in words, for those who cannot see it."""
    facts = [f"{worded(s['name'])} from {s['y'][0]:.4g} to {s['y'][-1]:.4g}" for s in figure["series"] if s["y"]]
    return f"{figure['stage']}: {figure['title']}; {', '.join(facts[:8])}"


def drawn(figures: Sequence[Figure]) -> list[tuple[Figure, str]]:
    """Each figure with its SVG, which is empty if it cannot be drawn: one strange curve must not cost the report."""
    found = []
    for index, figure in enumerate(figures):
        try:
            found.append((figure, svg(figure, f"f{index}")))
        except Exception as error:  # matplotlib's, for numbers that it cannot scale
            reason = f"could not be drawn: {type(error).__name__}: {error}"
            found.append(({**figure, "note": reason}, ""))
    return found
