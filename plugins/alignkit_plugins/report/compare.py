"""Runs side by side: how their evaluations, recipes and versions differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.report import Block, Report, Table
from alignkit_plugins.compare.readable import duration, short
from alignkit_plugins.compare.rows import Row, main_rows, rows_of
from alignkit_plugins.compare.tables import table
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.files import load_yaml
from alignkit_plugins.report.stages import flat

LONGEST = 24  # characters of a value


def compared(folders: Sequence[Path]) -> Report:
    """A comparison of runs for the terminal. Raises RecipeError for a folder that is not a
    run's.
    """
    facts, names = (
        [facts_of(folder) for folder in folders],
        ["/".join(folder.parts[-2:]) for folder in folders],
    )
    recipes = [flat({**load_yaml(one["recipe"]), "name": ""}) for one in facts]
    versions = [
        {**one["reproduce"]["versions"], **one["reproduce"]["machine"], "memory": ""}
        for one in facts
    ]
    blocks: list[Block] = [_overview(names, facts), *_evaluations(names, facts)]
    blocks += _differing("what differs in the recipes", "the recipes are equal", names, recipes)
    blocks += _differing(
        "what differs in versions and machines", "versions and machines are equal", names, versions
    )
    return Report(blocks)


def _overview(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> Table:
    """How each run ended, and what its stages learned."""
    runs = [one["run"] for one in facts]
    rows = [
        [
            "result",
            *(f"{one['outcome']}, {one['stages_done']} of {one['stages']} stages" for one in runs),
        ]
    ]
    rows.append(["time", *(duration(one["seconds"]) for one in runs)])
    rows.append(["peak memory", *(one["peak_memory"] or "-" for one in runs)])
    told = [{stage["name"]: stage["learned"] for stage in one["stages"]} for one in facts]
    stages = dict.fromkeys(name for one in told for name in one)
    rows += [[name, *(one.get(name) or "-" for one in told)] for name in stages]
    return Table("", ["", *names], [row for row in rows if {*row[1:]} != {"-"}])


def _differing(
    title: str, equal: str, names: Sequence[str], values: Sequence[Mapping[str, Any]]
) -> list[Block]:
    keys = dict.fromkeys(key for one in values for key in one)
    differing = [key for key in keys if len({repr(one.get(key)) for one in values}) > 1]
    rows = [[key, *(_cell(one.get(key, "-")) for one in values)] for key in differing]
    return [Table(title, ["key", *names], rows) if rows else equal]


def _evaluations(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The numbers of all policies by stage, a column per run."""
    found: dict[str, list[Row]] = {}
    for run, one in zip(names, facts, strict=True):
        for item in one["evaluations"]:
            rows = main_rows(rows_of(item["evaluation"]))
            found.setdefault(item["stage"], []).extend(
                replace(row, policy=run, metric=f"{row.policy}: {row.metric}") for row in rows
            )
    shared = {stage: rows for stage, rows in found.items() if len({row.policy for row in rows}) > 1}
    note = " (means may also differ because the prompts do)"
    return [table(rows, f"{stage}: mean and 95% interval{note}") for stage, rows in shared.items()]


def _cell(value: Any) -> str:
    text = short(value) if not isinstance(value, str) else value
    return text if len(text) <= LONGEST else f"...{text[-LONGEST:]}"
