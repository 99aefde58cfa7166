"""Charts as SVG without scripts: lines with bands, and values with intervals.

What lies across is in % of the plot, and all else in pixels, so that a chart is as readable on a
phone as on a screen. Colors are those of the page (`page.css`), in light and dark. The same numbers
always give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from alignkit.io.text import printable
from alignkit_plugins.servers.page import STYLE
from alignkit_plugins.text.rows import cut

CSS = Path(__file__).with_name("drawing.css").read_text("utf-8")
HEIGHT, LINE, CHARACTER = 110, 18, 7.1  # pixels: of curves, a line of text, a bold character
LEFT, TOP = 46, 6  # pixels around a plot
LABEL = 40  # characters of a name
SHORT = 24  # characters of a name that leave room for its row on a phone
DOTTED = 12  # values of a curve that are dots
NOISY = 40  # values of a curve that is smoothed
COLORS = 7  # how many lines have
GRID = 1000  # steps of a curve from left to right
SMALLEST = 1e-12  # range of values that differ


class Line(NamedTuple):
    """A curve. band: low and high at each x. joined: whether it is more than dots."""

    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[Sequence[float]] = ()
    joined: bool = True


class Point(NamedTuple):
    """A value with its interval, and those of single seeds. style: `result`, `base` or nothing."""

    mean: float
    low: float
    high: float
    seeds: Sequence[float] = ()
    style: str = ""


class Drawing(NamedTuple):
    """The elements of a chart; in pixels, its height and what lies left of the plot."""

    body: str
    height: float
    left: int = LEFT


class Scale:
    """From values to shares of a length. margin: at both ends, as a share of their range."""

    def __init__(self, values: Iterable[float], margin: float = 0.05):
        found = [*values]
        low, high = min(found), max(found)
        apart = margin * (high - low)
        if high - low < SMALLEST:
            apart = max(0.05, 0.05 * abs(high))
        self.low, self.high = self.ends = low - apart, high + apart

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Up to five round numbers."""
        least = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(least))
        step = power * min(size for size in (1, 2, 5, 10) if size * power >= least)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [at * step for at in range(first, last + 1)]

    def named(self, form: str = "{:.6g}") -> dict[float, str]:
        """The ticks with what stands there."""
        return {tick: form.format(tick) for tick in self.ticks()}


class Plot:
    """A chart that is drawn. height: of its inner part, in pixels, below the top."""

    def __init__(self, x: Scale, y: Scale, height: float = HEIGHT, top: float = TOP):
        self.x, self.y, self.height, self.top, self.body = x, y, height, top, ""

    def at(self, x: float, y: float) -> tuple[str, float]:
        """In % of the width, and in pixels."""
        down = self.height * (1 - self.y.share(y))
        return f"{100 * self.x.share(x):.4g}%", round(self.top + down, 1)

    def line(self, style: str, x: Sequence[float], y: Sequence[float]) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = map(self.at, x, y)
        self.body += f'<line class="{style}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'

    def dot(self, style: str, x: float, y: float) -> None:
        across, down = self.at(x, y)
        self.body += f'<circle class="{style}" cx="{across}" cy="{down}" r="3"/>'

    def text(self, style: str, words: str, x: object, y: float) -> None:
        shown = escape(printable(words))
        self.body += f'<text class="{style}" x="{x}" y="{y}">{shown}</text>'

    def curve(self, style: str, x: Sequence[float], y: Sequence[float]) -> None:
        """A line through values, which is as wide as the plot."""
        steps = list[str]()
        for one, other in zip(x, y, strict=True):
            steps.append(f"{GRID * self.x.share(one):.0f} {self.at(one, other)[1] - self.top:.1f}")
        box = (
            f'y="{self.top}" width="100%" height="{self.height}" viewBox="0 0 {GRID} {self.height}"'
        )
        path = f'<path class="{style}" d="M{"L".join(steps)}"/>'
        self.body += f'<svg {box} preserveAspectRatio="none">{path}</svg>'

    def point(self, x: Point, y: Point) -> None:
        self.line(f"interval {x.style}", (x.low, x.high), (y.mean, y.mean))
        self.line(f"interval {x.style}", (x.mean, x.mean), (y.low, y.high))
        for one, other in zip(x.seeds, y.seeds, strict=True):
            self.dot("seed", one, other)
        self.dot(f"mean {x.style}", x.mean, y.mean)

    def x_axis(self, ticks: Mapping[float, str], label: str = "") -> None:
        """ticks: what stands at each value."""
        bottom = self.top + self.height + 14
        for tick, shown in ticks.items():
            self.line("grid", (tick, tick), self.y.ends)
            self.text("tick middle", shown, self.at(tick, 0)[0], bottom)
        self.text("tick end", label, "100%", bottom + LINE)

    def y_axis(self) -> None:
        for tick in self.y.ticks():
            self.line("grid", self.x.ends, (tick, tick))
            self.text("tick end", f"{tick:.6g}", -6, self.at(0, tick)[1] + 4)


def curves(
    lines: Mapping[str, Line],
    label: str,
    key: bool = True,
    *,
    ticks: Mapping[float, str] | None = None,
    up: str = "",
) -> Drawing:
    """A line per name. label, up: of x and y. key: whether names stand above, if there are several.
    ticks: of x, by value; else its ends have one.
    """
    x, y = list[float](), list[float]()
    for line in lines.values():
        x += line.x
        y += [*line.y, *chain(*line.band)]
    named = key and len(lines) > 1
    above = LINE * (named * len(lines) + bool(up))
    plot = Plot(Scale(x, 0), Scale(y), top=TOP + above)
    plot.y_axis()
    if up:
        plot.text("tick", up, -LEFT, above - 4)
    if ticks is None:
        form = "{:.6g}" if float(max(x)).is_integer() else "{:.3g}"
        ticks = {end: form.format(end) for end in (min(x), max(x))}
    plot.x_axis(ticks, label)
    for at, (name, line) in enumerate(lines.items()):
        style = f"c{at % COLORS}"
        if line.band:
            lows, highs = zip(*line.band, strict=True)
            plot.curve(f"band {style}", [*line.x, *line.x[::-1]], [*lows, *highs[::-1]])
        joined = line.joined and len(line.x) > 2
        mean = line.y if line.band else smoothed(line.y)  # what has a band is a mean already
        if joined and mean is not line.y:
            plot.curve(f"raw {style}", line.x, line.y)
        if joined:
            plot.curve(style, line.x, mean)
        if not joined or len(line.x) <= DOTTED:
            for one, other in zip(line.x, line.y, strict=True):
                plot.dot(style, one, other)
        if named:
            base = LINE * (at + 1) - 4
            sign = f'<line class="{style}" x2="22" y1="{base - 4}" y2="{base - 4}"/>'
            plot.body += sign if joined else f'<circle class="{style}" cx="11" cy="{base - 4}"/>'
            plot.text("", _short(name), 28, base)
    return Drawing(plot.body, plot.top + HEIGHT + 2 * LINE)


def smoothed(y: Sequence[float]) -> Sequence[float]:
    """The mean of each of many values with its neighbors, a tenth of all; few stay as they are."""
    if len(y) <= NOISY:
        return y
    reach = len(y) // 20
    return [fmean(y[max(0, at - reach) : at + reach + 1]) for at in range(len(y))]


def rows(
    points: Mapping[str, Point],
    *,
    percent: bool = False,
    bars: bool = False,
    marks: Sequence[float] = (),
    label: str = "",
    most: int = LABEL,
) -> Drawing:
    """A row per name: a dot at its mean, its interval, and a faint dot for each seed.

    percent: whether values are shares. bars: from 0 to the means. marks: values with a line of their
    own. label: of x. most: characters of a name.
    """
    values = [0.0] * bars + [0.0, 1.0] * percent + [*marks]
    for point in points.values():
        values += [point.low, point.high, *point.seeds]
    longest = max(len(_short(name, most)) for name in points)
    lines = 1 + (longest > SHORT)  # a long name stands above its row
    x, y = Scale(values, 0 if percent else 0.05), Scale([0.5, 0.5 - lines * len(points)], 0)
    plot = Plot(x, y, LINE * lines * len(points))
    plot.x_axis(x.named("{:.0%}" if percent else "{:.6g}"), label)
    for mark in marks:
        plot.line("base", (mark, mark), y.ends)
    for number, (name, point) in enumerate(points.items(), 1):
        at = 1 - lines * number
        plot.line("grid", x.ends, (at, at))
        if bars:
            plot.line("bar", (0.0, point.mean), (at, at))
        plot.point(point, Point(at, at, at, [at] * len(point.seeds)))
        down = plot.at(0, at)[1] + 4
        if lines == 1:
            plot.text(f"end {point.style}", _short(name, most), -8, down)
        else:
            plot.text(point.style, _short(name, most), 0, down - LINE)
    left = 8 + int(CHARACTER * longest) * (lines == 1)
    return Drawing(plot.body, TOP + plot.height + LINE * (1 + bool(label)), left)


def plane(points: Mapping[str, tuple[Point, Point]], x_label: str, y_label: str) -> Drawing:
    """A point per name, with its interval in both directions, and a faint dot for each seed."""
    x, y = list[float](), list[float]()
    for across, up in points.values():
        x += [across.low, across.high, *across.seeds]
        y += [up.low, up.high, *up.seeds]
    plot = Plot(Scale(x), Scale(y), 2 * HEIGHT, TOP + LINE)
    plot.y_axis()
    plot.x_axis(plot.x.named(), x_label)
    plot.text("tick", y_label, -LEFT, LINE - 4)
    for name, (across, up) in points.items():
        plot.point(across, up)
        where, down = plot.at(across.mean, up.mean)
        plot.text("middle", _short(name), where, down - 8)
    return Drawing(plot.body, plot.top + plot.height + 2 * LINE)


def alone(drawing: Drawing, width: int = 480) -> str:
    """A chart as a file, for a paper."""
    size = f'width="{width}" height="{drawing.height}"'
    plot = f'x="{drawing.left}" width="{width - drawing.left - 14}"'
    style = f"<style>{STYLE}\n{CSS}\nsvg {{ background: var(--paper); font-family: system-ui, sans-serif; }}</style>"
    body = f'{style}<svg {plot} overflow="visible">{drawing.body}</svg>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size}>{body}</svg>'


def _short(name: str, most: int = LABEL) -> str:
    return cut(" ".join(printable(name).split()), most)
