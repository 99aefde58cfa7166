"""Runs side by side: how their evaluations, recipes, versions and metrics differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.report import Block, Report, Table
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.files import load_yaml
from alignkit_apps.report.stages import flat
from alignkit_plugins.evaluate.readable import short
from alignkit_plugins.evaluate.rows import Row, main_rows, rows_of
from alignkit_plugins.evaluate.tables import table

LONGEST = 24  # characters of a value


def compared(folders: Sequence[Path]) -> Report:
    """A comparison of runs for the terminal. Raises RecipeError for a folder that is not a run's."""
    facts, names = [facts_of(folder) for folder in folders], labels(folders)
    recipes = [flat({**load_yaml(one["recipe"]), "name": ""}) for one in facts]
    versions = [{**one["reproduce"]["versions"], **one["reproduce"]["machine"], "memory": ""} for one in facts]
    blocks: list[Block] = [_overview(names, facts), *_evaluations(names, facts)]
    blocks += _differing("what differs in the recipes", "the recipes are equal", names, recipes)
    blocks += _differing("what differs in versions and machines", "versions and machines are equal", names, versions)
    return Report([*blocks, *_metrics(names, facts)])


def labels(folders: Sequence[Path]) -> list[str]:
    """A short name per folder, with as many of its parents as tell it from the others."""
    paths = [folder.resolve() for folder in folders]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def _overview(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        ["recipe", *(_cell(one["run"]["name"]) for one in facts)],
        ["result", *(one["run"]["outcome"] for one in facts)],
        ["stages done", *(f"{one['run']['stages_done']} of {one['run']['stages']}" for one in facts)],
        ["seconds", *(short(round(one["run"]["seconds"], 1)) for one in facts)],
        ["peak memory", *(one["run"]["peak_memory"] or "-" for one in facts)],
        ["seed", *(short(one["reproduce"]["seed"]) for one in facts)],
    ]
    return Table("", ["", *names], rows)


def _differing(title: str, equal: str, names: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[Block]:
    keys = dict.fromkeys(key for one in values for key in one)
    differing = [key for key in keys if len({repr(one.get(key)) for one in values}) > 1]
    rows = [[key, *(_cell(one.get(key, "-")) for one in values)] for key in differing]
    return [Table(title, ["key", *names], rows) if rows else equal]


def _metrics(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The last values of the metrics of stages that several runs have."""
    stages = [{stage["name"]: stage["metrics"] for stage in one["stages"]} for one in facts]
    blocks: list[Block] = []
    for name in dict.fromkeys(name for one in stages for name in one):
        ends = [one.get(name, {}) for one in stages]
        metrics = dict.fromkeys(metric for one in ends for metric in one)
        rows = [[metric, *(short(one.get(metric, {}).get("last")) for one in ends)] for metric in metrics]
        if rows and sum(map(bool, ends)) > 1:
            blocks.append(Table(f"{name}: metrics at the end", ["", *names], rows))
    return blocks


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
