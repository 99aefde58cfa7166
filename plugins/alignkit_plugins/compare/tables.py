"""The table of policies by metrics, and those of the details of an evaluation, all from its
rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from alignkit.data.group import Group
from alignkit.report import SideBySide, Table
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.compare.readable import short, shown
from alignkit_plugins.compare.rows import RATED, Row, main_rows

GAP = 2  # characters between columns
MOST_VALUES = 30  # of a column, the most frequent ones
EXCERPT = 300  # longest text of a sample, in characters
LOWER = "*"  # marks a metric whose lower values are better


def over(evaluation: Mapping[str, Any]) -> str:
    """What the numbers of an evaluation's table are over."""
    examples = evaluation.get("examples")
    held_out = f" and {short(examples)} held-out examples" if examples else ""
    return f"mean and 95% interval over {short(evaluation.get('prompts'))} prompts{held_out}"


def table(
    rows: Sequence[Row], title: str = "", *, differences: bool = False, width: int | None = None
) -> Table:
    """A table of policies by metrics, whose cells are means, or differences from the baseline.

    A metric is a line, or, where only that fits into `width` characters, a policy is one.
    """
    metrics = {row.metric: f"{row.metric}{LOWER}" if row.lower else row.metric for row in rows}
    policies = {row.policy: row.policy for row in rows}
    cells = {(row.metric, row.policy): cell(row, differences) for row in rows}
    note = f"{LOWER} lower is better" if any(row.lower for row in rows) else ""
    upright = Table(title, ["", *policies], _lines(metrics, policies, cells), note=note)
    if width is None:
        return upright
    turned = {(policy, metric): text for (metric, policy), text in cells.items()}
    across = Table(
        title, ["policy", *metrics.values()], _lines(policies, metrics, turned), note=note
    )
    return _fitting(upright, width) or _fitting(across, width) or upright


def _lines(
    names: Mapping[str, str], columns: Iterable[str], cells: Mapping[tuple[str, str], str]
) -> list[list[str]]:
    """A line for each name, behind its head."""
    lines = []
    for name, head in names.items():
        lines.append([head, *(cells.get((name, column), "-") for column in columns)])
    return lines


def _fitting(one: Table, width: int) -> Table | None:
    """A table whose cells are whole, with heads in several lines if it is else too wide; None if it
    still is.
    """
    columns = list(zip(*one.rows, strict=True)) or [()] * len(one.columns)
    cells = [max(map(len, column), default=0) for column in columns]
    words = [max(map(len, head.split()), default=0) for head in one.columns]
    for heads in (list(map(len, one.columns)), words):
        widths = [max(pair) for pair in zip(cells, heads, strict=True)]
        if sum(widths) + GAP * (len(widths) - 1) <= width:
            wrapped = [
                wrap(head, size or 1) for head, size in zip(one.columns, widths, strict=True)
            ]
            return replace(one, columns=list(map("\n".join, wrapped)))
    return None


def comparisons(rows: Sequence[Row]) -> Table:
    """Each policy against its baseline, a line per metric: with the share of prompts won, and at
    equal length.
    """
    compared = [row for row in main_rows(rows) if row.kind in RATED and row.difference]
    lines = []
    for row in compared:
        equally_long = shown(row.equal_length, sign=row.kind != "judge", percent=row.percent)
        # A share of one prompt says nothing.
        share = shown(row.win_rate, percent=True) if row.win_rate.get("n") != 1 else "-"
        lines.append([row.policy, row.metric, cell(row, True), equally_long, share, row.counts])
    heads = [
        "policy",
        "metric",
        "difference",
        "at equal length",
        "won, without ties",
        "won/lost/tied",
    ]
    baselines = dict.fromkeys(row.baseline for row in compared)
    return Table(f"against {', '.join(baselines)}, prompt by prompt", heads, lines, keys=2)


def details(rows: Sequence[Row]) -> list[Table]:
    """Diversity; then the results by column."""
    diverse = [row for row in rows if row.kind == "diversity"]
    columns = dict.fromkeys(row.column for row in rows if row.column)
    first = [table(diverse, "diversity of the answers")] if diverse else []
    return [*first, *(by_column(rows, column) for column in columns)]


def by_column(rows: Sequence[Row], column: str) -> Table:
    """For each value of a column, each policy against the baseline, or else its means."""
    every = [row for row in rows if row.column == column]
    differences = [row for row in every if row.difference]
    sizes = dict[str, int]()
    for row in every:
        sizes[row.value] = max(sizes.get(row.value, 0), row.estimate["n"])
    frequent = sorted(sizes, key=lambda value: -sizes[value])[:MOST_VALUES]
    cells = dict[tuple[str, str], dict[str, str]]()
    for row in differences or every:
        if row.value in frequent:
            cells.setdefault((row.value, row.policy), {})[row.metric] = cell(row, bool(differences))
    metrics = list(dict.fromkeys(row.metric for row in differences or every))
    lines = []
    for (value, policy), own in cells.items():
        lines.append(
            [value, policy, f"{sizes[value]:,}", *(own.get(metric, "-") for metric in metrics)]
        )
    notes = []
    if rarer := len(sizes) - len(frequent):
        notes.append(f"results.csv has {rarer} rarer values too")
    if len(frequent) > 2 and differences:
        notes.append("of many values, one in twenty seems to differ by chance")
    title = f"by {column}{', differences from the baseline' * bool(differences)}"
    return Table(
        title, [column, "policy", "prompts", *metrics], lines, keys=2, note="; ".join(notes)
    )


def cell(row: Row, difference: bool = False) -> str:
    """`59% [47, 71]`, or the difference with its sign. A judge's is its preference."""
    of_difference = difference and row.kind != "judge"
    value = row.difference if of_difference else row.estimate
    return shown(value, sign=of_difference, percent=row.percent)


def side_by_side(group: Group, policies: Sequence[str], headline: str | None) -> SideBySide:
    """The last turn of a prompt, and each policy's first answer with its score."""
    heads, texts = [], []
    for name in policies:
        answer = answers_of(group, name)[0]
        score = answer.scores.get(headline or "")
        heads.append(name if score is None else f"{name} ({headline} {score:.3g})")
        texts.append(excerpt(answer.text))
    return SideBySide(f"prompt: {excerpt(group.prompt[-1]['content'])}", heads, texts)


def excerpt(text: str) -> str:
    """The beginning of a text, with blanks for control characters, which would act on the
    terminal.
    """
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return printable if len(printable) <= EXCERPT else f"{printable[: EXCERPT - 3].rstrip()}..."
