"""The table of policies by metrics, and those of the details of an evaluation, all from its
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from alignkit.report import Table
from alignkit_plugins.compare.readable import short, shown
from alignkit_plugins.evaluate.rows import RATED, Row, main_rows

GAP = 2  # characters between columns
MOST_VALUES = 30  # of a column, the most frequent ones
DETAILS = {
    "diversity": "diversity of the answers",
    "Elo": "Elo points; the mean of all policies is 1000",
    "order": "what the order of two answers does to a judge",
}
LOWER = "*"  # marks a metric whose lower values are better


def over(summary: Mapping[str, Any]) -> str:
    """What the numbers of an evaluation's table are over."""
    examples = summary.get("examples")
    held_out = f" and {short(examples)} held-out examples" if examples else ""
    return f"mean and 95% interval over {short(summary.get('prompts'))} prompts{held_out}"


def table(
    rows: Sequence[Row], title: str = "", *, differences: bool = False, width: int | None = None
) -> Table:
    """A table of policies by metrics, whose cells are means, or differences from the baseline.

    A metric is a line, or, where only that fits into `width` characters, a policy is one.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    lower = {row.metric for row in rows if row.lower}
    cells = {(row.policy, row.metric): cell(row, differences) for row in rows}
    named = {name: f"{name}{LOWER}" if name in lower else name for name in metrics}
    lines = [
        [named[name], *(cells.get((policy, name), "-") for policy in policies)] for name in metrics
    ]
    note = f"{LOWER} lower is better" if lower else ""
    upright = Table(title, ["", *policies], lines, note=note)
    lines = [[policy, *(cells.get((policy, name), "-") for name in metrics)] for policy in policies]
    across = Table(title, ["policy", *named.values()], lines, note=note)
    return (
        upright if width is None else _fitting(upright, width) or _fitting(across, width) or upright
    )


def _fitting(one: Table, width: int) -> Table | None:
    """A table whose cells are whole, with heads in several lines if it is else too wide; None if it
    still is.
    """
    cells = [
        max(len(row[at]) for row in one.rows) if one.rows else 0 for at in range(len(one.columns))
    ]
    words = [max(map(len, head.split()), default=0) for head in one.columns]
    for heads in (list(map(len, one.columns)), words):
        widths = [max(pair) for pair in zip(cells, heads, strict=True)]
        if sum(widths) + GAP * (len(widths) - 1) <= width:
            lines = [wrap(head, size or 1) for head, size in zip(one.columns, widths, strict=True)]
            return replace(one, columns=list(map("\n".join, lines)))
    return None


def comparisons(rows: Sequence[Row]) -> Table:
    """Each policy against its baseline, a line per metric: with the share of prompts won, and at
    equal length.
    """
    found = {(row.policy, row.metric, row.kind): row for row in rows if not row.column}
    lines, baseline = [], ""
    for row in main_rows(rows):
        if row.kind in RATED and row.difference:
            baseline = row.baseline
            equal, won = (
                found.get((row.policy, row.metric, kind)) for kind in ("equal length", "win rate")
            )
            equally_long = "-" if equal is None else cell(equal, not equal.estimate)
            share = (
                "-" if won is None or won.estimate.get("n") == 1 else cell(won)
            )  # a share of one prompt says nothing
            lines.append([row.policy, row.metric, cell(row, True), equally_long, share, row.counts])
    heads = [
        "policy",
        "metric",
        "difference",
        "at equal length",
        "won, without ties",
        "won/lost/tied",
    ]
    return Table(f"against {baseline}, prompt by prompt", heads, lines, keys=2)


def details(rows: Sequence[Row]) -> list[Table]:
    """Diversity, Elo points and what the order does to judges; then the results by column."""
    found = [table(of_kind(rows, kind), title) for kind, title in DETAILS.items()]
    columns = dict.fromkeys(row.column for row in rows if row.column)
    return [*(one for one in found if one.rows), *(by_column(rows, column) for column in columns)]


def by_column(rows: Sequence[Row], column: str) -> Table:
    """For each value of a column, each policy against the baseline, or else its means."""
    every = [row for row in rows if row.column == column]
    compared = [row for row in every if row.difference]
    found = {(row.value, row.policy, row.metric): row for row in compared or every}
    metrics = list(dict.fromkeys(name for _, _, name in found))
    sizes = dict[str, int]()
    for row in every:
        sizes[row.value] = max(sizes.get(row.value, 0), row.estimate["n"])
    kept = sorted(sorted(sizes, key=lambda value: -sizes[value])[:MOST_VALUES])
    lines = []
    for value, policy in dict.fromkeys((value, policy) for value, policy, _ in found):
        if value in kept:
            cells = [found.get((value, policy, name)) for name in metrics]
            shown_cells = ["-" if one is None else cell(one, bool(compared)) for one in cells]
            lines.append([value, policy, f"{sizes[value]:,}", *shown_cells])
    more = len(sizes) - len(kept)
    notes = [f"results.csv has {more} rarer values too"] if more else []
    notes += (
        ["of many values, one in twenty seems to differ by chance"]
        if len(kept) > 2 and compared
        else []
    )
    title = f"by {column}{', differences from the baseline' if compared else ''}"
    return Table(
        title, [column, "policy", "prompts", *metrics], lines, keys=2, note="; ".join(notes)
    )


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows of a kind, over all prompts."""
    return [row for row in rows if row.kind == kind and not row.column]


def cell(row: Row, difference: bool = False) -> str:
    """`59% [47, 71]`, or the difference with its sign. A judge's is its preference."""
    of_difference = difference and row.kind != "judge"
    value = row.difference if of_difference else row.estimate
    return shown(value, sign=of_difference, percent=row.percent)
