"""The tables of a report besides those of evaluations, for its page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit.report import Table
from alignkit_plugins.compare.readable import duration, number, short, size
from alignkit_plugins.report.curves import worded
from alignkit_plugins.report.data_cards import brief_name
from alignkit_plugins.report.stages import flat, stage_words

MOST_METRICS = 40  # of a stage, at its end


def filled(table: Table, *empty: str) -> Table:
    """A table without columns, other than its keys, in which every cell is `-` or one of
    `empty`.
    """
    says = [
        at
        for at in range(len(table.columns))
        if at < table.keys or {row[at] for row in table.rows} - {"-", *empty}
    ]
    columns = [table.columns[at] for at in says]
    about = table.note.partition(":")[0]  # a column, in some notes
    note = "" if about in table.columns and about not in columns else table.note
    return replace(
        table, columns=columns, rows=[[row[at] for at in says] for row in table.rows], note=note
    )


def stage_titles(stages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A title per stage: `PPO: align`. One that is named like what makes it, and a single
    evaluation, have no name.
    """
    plugins = [one["plugin"] for one in stages]
    titles = {}
    for one in stages:
        name, plugin = one["name"], one["plugin"]
        alone = name == plugin or (plugin == "evaluate" and plugins.count(plugin) == 1)
        titles[name] = (
            stage_words(plugin) if alone else f"{stage_words(plugin)}: {name}" if plugin else name
        )
    return titles


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """A row per stage."""
    rows = [
        [
            one["name"],
            stage_words(one["plugin"]),
            one["state"],
            duration(one["seconds"]),
            short(one["tokens_per_second"]),
            size(one["bytes"]) if one["bytes"] else "-",
        ]
        for one in stages
    ]
    return Table("", ["stage", "by", "state", "time", "tokens per second", "on disk"], rows, keys=3)


def metrics_table(stage: Mapping[str, Any]) -> Table:
    """The first, last, least and largest value of each metric of a stage."""
    rows = [
        [worded(name), *(short(number(values.get(key))) for key in ("first", "last", "min", "max"))]
        for name, values in list(stage["metrics"].items())[:MOST_METRICS]
    ]
    return Table(
        f"over {stage['lines']:,} steps", ["metric", "first", "last", "least", "most"], rows
    )


def data_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per source that a stage read; that nothing was held out, skipped or tied goes without a
    column.
    """
    cells = [
        [
            str(row["stage"]),
            brief_name(row["name"]),
            str(row["format"] or "-").replace("_", " "),
            *(short(row[key]) for key in ("rows", "held_out", "skipped")),
        ]
        for row in rows
    ]
    heads = ["stage", "source", "format", "rows", "held out", "skipped"]
    return filled(Table("", heads, cells, keys=3), "0")


def facts_table(title: str, facts: Mapping[str, Any], name: Callable[[str], str] = str) -> Table:
    """Keys and values of nested plain data. name: how keys are written."""
    return Table(
        title, ["", ""], [[name(key), short(value)] for key, value in flat(facts).items()], keys=2
    )
