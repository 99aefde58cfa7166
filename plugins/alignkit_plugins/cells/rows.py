"""What a cell found, as one small file: its scores by prompt and all that they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json
from alignkit.errors import DataError
from alignkit.io.atomic import write_json
from alignkit.io.digest import digest
from alignkit.io.results import CELLS, json_lines, read_record
from alignkit.recipe.schema import Recipe
from alignkit_plugins.compare.rows import main_rows, rows_in
from alignkit_plugins.compare.scores import Measure, scale_of, scores_of
from alignkit_plugins.report.history import read_object

MACHINE = ("processor", "dtype", "threads")  # facts of a stage on which its numbers depend


def write_row(values: Mapping[str, str], recipe: Recipe, folder: Path) -> None:
    """Write FOLDER.json. values: of the cell, by axis. folder: of its run, which is complete."""
    stages = {name: _stage(folder / name) for name in recipe.stages}
    row = {
        "values": dict(values),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stages": stages,
        "evaluations": {
            name: _evaluation(folder / name)
            for name, stage in recipe.stages.items()
            if (folder / name / "evaluation.json").is_file()
        },
    }
    write_json(folder.with_name(f"{folder.name}.json"), {**row, "check": digest(row)})


def read_row(file: Path) -> dict[str, Any]:
    """The row in a file. Raises DataError if it was changed."""
    try:
        row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        check = row.pop("check")
    except (OSError, ValueError, KeyError, AttributeError):
        check = row = {}
    if not row or check != digest(row):
        raise DataError(
            f"{file}: it is not as the run wrote it\nhelp: delete it, and run the recipe again"
        )
    return row


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's cells. Raises DataError."""
    return list(map(read_row, sorted((run / CELLS).glob("*.json"))))


def _stage(folder: Path) -> dict[str, Any]:
    """What a stage's scores depend on, and what it took."""
    record = read_record(folder)
    facts = {name: record.get(name) for name in ("plugin", "hash", "seconds", *MACHINE)}
    weights = [one for name, one in record.get("files", {}).items() if name.startswith("adapter/")]
    if weights:
        facts["adapter"] = digest([one["sha256"] for one in weights])
    return facts


def _evaluation(folder: Path) -> dict[str, Any]:
    """Who was compared how, and each score.

    `prompts` has the keys of the prompts and what they are drawn together with, and `scores` for
    each metric and policy a value for each of them, None for those that do not count.
    """
    evaluation = read_object(folder / "evaluation.json")
    rows = [*json_lines(folder / "samples.jsonl"), *json_lines(folder / "held_out.jsonl")]
    groups = list(map(group_from_json, rows))
    measures = _measures(groups, evaluation)
    table = scores_of(groups, evaluation["policies"], measures)
    places: dict[str, int] = {}
    units: list[Any] = []
    for score in table.rows:
        if score.prompt not in places:
            places[score.prompt] = len(places)
            units.append(score.unit)
    scores: dict[str, dict[str, list[float | None]]] = {}
    for score in table.rows:
        column = scores.setdefault(score.metric, {}).setdefault(score.policy, [None] * len(units))
        column[places[score.prompt]] = score.value
    return {
        **{name: evaluation[name] for name in ("headline", "baseline", "policies", "sampling")},
        "measures": {name: asdict(one) for name, one in measures.items()},
        "prompts": [[key, unit] for key, unit in zip(places, units, strict=True)],
        "scores": scores,
    }


def _measures(groups: Sequence[Group], evaluation: Mapping[str, Any]) -> dict[str, Measure]:
    """What the composites, metrics and rewards of an evaluation mean."""
    found, composites = dict[str, Measure](), evaluation.get("composites", {})
    for row in main_rows(rows_in(evaluation)):
        if row.kind in ("metric", "reward"):
            scale, own = scale_of(groups, row.metric), {row.policy: row.trained_on}
            facts = row.kind, scale, row.lower, row.percent, row.tested
            if row.metric in found:
                own = {**found[row.metric].trained_on, **own}
            found[row.metric] = Measure(*facts, own, composites.get(row.metric, {}))
    return found
