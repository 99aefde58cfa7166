"""What a cell found, as one small file: its scores by prompt and all that they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json
from alignkit.errors import DataError
from alignkit.io.digest import digest
from alignkit.io.results import CELLS, json_lines, read_checked, read_record, write_checked
from alignkit.recipe.schema import Recipe
from alignkit_plugins.compare.rows import main_rows, rows_in
from alignkit_plugins.compare.scores import Measure, scale_of, scores_of

MACHINE = ("processor", "dtype", "threads")  # facts of a stage on which its numbers depend


def write_row(
    place: int, values: Mapping[str, str], base: str, recipe: Recipe, folder: Path
) -> None:
    """Write FOLDER.json. place: of the cell among all. values: of the cell, by axis. base: a digest
    of the recipe without them. folder: of its run, which is complete.
    """
    stages, evaluations = dict[str, Any](), dict[str, Any]()
    for name in recipe.stages:
        stages[name] = _stage(folder / name)
        if (folder / name / "evaluation.json").is_file():
            evaluations[name] = _evaluation(folder / name)
    row = {
        "place": place,
        "values": dict(values),
        "base": base,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stages": stages,
        "evaluations": evaluations,
    }
    write_checked(folder.with_name(f"{folder.name}.json"), row)


def read_row(file: Path) -> dict[str, Any]:
    """The row in a file. Raises DataError if it was changed."""
    row = read_checked(file)
    if not row:
        raise DataError(
            f"{file}: it is not as the run wrote it\nhelp: delete it, and run the recipe again"
        )
    return row


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's cells. Raises DataError."""
    rows = list(map(read_row, sorted((run / CELLS).glob("*.json"))))
    return sorted(rows, key=lambda row: int(row["place"]))


def _stage(folder: Path) -> dict[str, Any]:
    """What a stage's scores depend on, and what it took."""
    record = read_record(folder)
    facts, weights = dict[str, Any](), list[str]()
    for name in ("plugin", "hash", "seconds", *MACHINE):
        facts[name] = record.get(name)
    for name, file in record.get("files", {}).items():
        if name.startswith("adapter/"):
            weights.append(file["sha256"])
    return {**facts, "adapter": digest(weights) if weights else ""}


def _evaluation(folder: Path) -> dict[str, Any]:
    """Who was compared how, and each score.

    `prompts` has for each metric the keys of the prompts that count, and what they are drawn
    together with; `scores` has for each metric and policy a value for each of them. Composites are
    sums of these.
    """
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = [*json_lines(folder / "samples.jsonl"), *json_lines(folder / "held_out.jsonl")]
    groups = list(map(group_from_json, rows))
    measures, prompts = _measures(groups, evaluation), dict[str, dict[str, Any]]()
    raw = {name: measure for name, measure in measures.items() if not measure.parts}
    scores = dict[str, dict[str, dict[str, float | None]]]()
    for score in scores_of(groups, evaluation["policies"], raw).rows:
        if score.value is not None:
            prompts.setdefault(score.metric, {})[score.prompt] = score.unit
            own = scores.setdefault(score.metric, {}).setdefault(score.policy, {})
            own[score.prompt] = score.value
    found: dict[str, Any] = {"prompts": {}, "scores": {}, "measures": {}}
    for metric, each in scores.items():
        found["prompts"][metric] = list(prompts[metric].items())
        columns = found["scores"][metric] = {}
        for policy, own in each.items():
            columns[policy] = list(map(own.get, prompts[metric]))
    for name, measure in measures.items():
        found["measures"][name] = asdict(measure)
    for name in ("headline", "baseline", "policies", "sampling"):
        found[name] = evaluation[name]
    return found


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
