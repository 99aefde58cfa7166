"""The table of policies by metrics, and those of the details of an evaluation, all from its
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.contract.report import SideBySide, Table
from alignkit.data.group import Group
from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.compare.rows import RATED, Row
from alignkit_plugins.text.readable import bounds, short
from alignkit_plugins.text.rows import cut
from alignkit_plugins.text.spoken import all_turns

EXCERPT = 300  # longest text of a sample, in characters
UNKNOWN = " [?, ?]"  # the interval of values that are all alike
LOWER = "*"  # marks a metric whose lower values are better


def over(evaluation: Mapping[str, Any]) -> str:
    """What the numbers of an evaluation's table are over."""
    examples = evaluation.get("examples")
    held_out = f" and {short(examples)} held-out examples" if examples else ""
    prompts, units = evaluation.get("prompts"), evaluation.get("units")
    independent = "" if units in (None, prompts) else f" ({short(units)} independent)"
    return f"mean and 95% interval over {short(prompts)} prompts{independent}{held_out}"


def table(
    rows: Sequence[Row], title: str = "", *, differences: bool = False, lines: str = "metric"
) -> Table:
    """A table of policies by metrics, whose cells are means, or differences from the baseline. In a
    line with intervals, what has none, as all its values are alike, says so, unless its row leaves
    out the ends. lines: what has a line, metric or policy; the other has a column.
    """
    known = set[str]()
    for row in rows:
        if row.kind in RATED and None not in bounds(_shown(row, differences)):
            known.add(row.metric)
    cells = dict[str, dict[str, str]]()
    columns = dict[str, None]()
    for row in rows:
        metric = f"{row.metric}{LOWER}" if row.lower else row.metric
        text = cell(row, differences)
        shown = _shown(row, differences)
        mean, *ends = bounds(shown)
        if row.metric in known and "low" in shown and mean is not None and None in ends:
            text += UNKNOWN
        line, column = (metric, row.policy) if lines == "metric" else (row.policy, metric)
        cells.setdefault(line, {})[column] = text
        columns[column] = None
    grid = [
        [line, *({**dict.fromkeys(columns, "-"), **own}.values())] for line, own in cells.items()
    ]
    note = f"{LOWER} lower is better" if any(row.lower for row in rows) else ""
    return Table(title, ["" if lines == "metric" else lines, *columns], grid, note=note)


def details(rows: Sequence[Row]) -> list[Table]:
    """The results by each column of the prompts: a line per value and policy."""
    tables: dict[str, tuple[dict[str, None], dict[tuple[str, str], list[str]]]] = {}
    for row in rows:
        if row.column:
            metrics, lines = tables.setdefault(row.column, ({}, {}))
            metrics[row.metric] = None
            line = lines.setdefault((row.value, row.policy), [row.value, row.policy])
            line.append(cell(row))
    found = list[Table]()
    for column, (metrics, lines) in tables.items():
        heads = [column, "policy", *metrics]
        found.append(Table(f"by {column}", heads, list(lines.values()), keys=2))
    return found


def cell(row: Row, difference: bool = False) -> str:
    """`59% [47, 71]`, or the difference with its sign. A judge's is its preference; a share that
    says nothing is chance.
    """
    if row.chance and not difference:
        return "chance"
    sign = difference and row.kind != "judge"
    return interval_text(_shown(row, difference), sign=sign, percent=row.percent)


def _shown(row: Row, difference: bool) -> Mapping[str, Any]:
    """What the cell of a row shows; empty if it is chance."""
    if difference and row.kind != "judge":
        return row.difference
    return {} if row.chance and not difference else row.estimate


def side_by_side(group: Group, policies: Sequence[str], headline: str | None) -> SideBySide:
    """The last turn of a prompt, and each policy's first answer with its score."""
    heads, texts = [], []
    for name in policies:
        answer = answers_of(group, name)[0]
        score = answer.scores.get(headline or "")
        heads.append(name if score is None else f"{name} ({headline} {score:.3g})")
        texts.append(excerpt(all_turns(answer, thoughts=True)))
    return SideBySide(f"prompt: {excerpt(group.prompt[-1]['content'])}", heads, texts)


def excerpt(text: str) -> str:
    """The beginning of a text, with blanks for control characters, which would act on the
    terminal.
    """
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return cut(printable, EXCERPT)
