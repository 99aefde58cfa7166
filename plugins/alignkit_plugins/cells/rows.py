"""What a run found, as one small file: its scores by prompt and all that they depend on.

RUN/cells/ADDRESS.json    of a cell (`alignkit_plugins.cells.running`)
RUN/cells/STAGE-KEY.json  of a step that evaluates in the run itself, for each of its results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json
from alignkit.errors import DataError
from alignkit.io.atomic import make_folder
from alignkit.io.digest import digest
from alignkit.io.results import CELLS, is_cell, json_lines, read_checked, read_record, write_checked
from alignkit.models.saved import read_json
from alignkit.recipe.schema import Recipe
from alignkit_plugins.compare.rows import ANSWERS, main_rows, rows_in
from alignkit_plugins.compare.scores import Measure, Scale, Score, Scores, scale_of, scores_of
from alignkit_plugins.evals import examples

# Options of an evaluation on which its scores depend
DECIDES = ("prompts", "rewards", "metrics", "composites", "examples")
COMMANDS = "commands.jsonl"
COLUMNS = {"scores": "value", "lengths": "length", "outcomes": "outcome"}  # facts of a Score


def row_of(recipe: Recipe, folder: Path, steps: Sequence[str] = ()) -> dict[str, Any]:
    """What a run has found, in its folder. steps: that evaluate; default: all."""
    stages, evaluations = dict[str, Any](), dict[str, Any]()
    for name in recipe.stages:
        stages[name] = _stage(folder / name)
        if name in (steps or stages) and (folder / name / "evaluation.json").is_file():
            evaluations[name] = _evaluation(folder / name)
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stages": stages,
        "evaluations": evaluations,
    }


def keep_row(recipe: Recipe, folder: Path, step: str) -> None:
    """Write what a step has found whose run is no cell, next to what it found before."""
    if (folder / step / "evaluation.json").is_file() and not is_cell(folder):
        row = row_of(recipe, folder, [step])
        name = f"{step}-{row['stages'][step]['hash'][:16]}.json"
        make_folder(folder / CELLS)
        write_checked(folder / CELLS / name, row)


def row_files(run: Path) -> list[Path]:
    """The files of a run's cells that are complete, as ADDRESS.json."""
    return sorted((run / CELLS).glob("*=*.json"))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's cells, each with its folder. Raises DataError if one was changed."""
    rows = list[dict[str, Any]]()
    for file in row_files(run):
        row = read_checked(file)
        if not row:
            text = f"{file}: it is not as the run wrote it"
            raise DataError(f"{text}\nhelp: delete it, and run the recipe again")
        rows.append({**row, "folder": str(file).removesuffix(".json")})
    return sorted(rows, key=lambda row: int(row["place"]))


def to_come(run: Path) -> dict[str, str]:
    """The cells of commands that are not complete, by address, each with its last command."""
    found = dict[str, str]()
    for line in json_lines(run / CELLS / COMMANDS):
        for address in line["cells"]:
            if not (run / CELLS / f"{address}.json").is_file():
                found[address] = line["command"]
    return found


def own_rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows that a run left as no cell. One that was changed is left out, as an earlier result
    that is damaged: it must not end the run.
    """
    files = [file for file in sorted((run / CELLS).glob("*.json")) if "=" not in file.name]
    return list(filter(None, map(read_checked, files)))


def _stage(folder: Path) -> dict[str, Any]:
    """What a stage's scores depend on, and what it took."""
    record = read_record(folder)
    facts, weights = dict[str, Any](), list[str]()
    for name in ("plugin", "hash", "seconds", "memory", "finished", "made_on"):
        facts[name] = record.get(name)
    for name in ("tokens", "base_parameters"):
        facts[name] = record.get("summary", {}).get(name)
    for name, file in record.get("files", {}).items():
        if name.startswith("adapter/"):
            weights.append(file["sha256"])
    return {**facts, "adapter": digest(weights) if weights else ""}


def _evaluation(folder: Path) -> dict[str, Any]:
    """Who was compared how, and each score.

    `prompts` has for each metric the keys of the prompts that count, and what they are drawn
    together with; each of COLUMNS has for metrics and policies a value for each of them. Composites
    are sums of these. `measured`: by what, as digests.
    """
    evaluation = read_json(folder / "evaluation.json")
    rows = [*json_lines(folder / "samples.jsonl"), *json_lines(folder / "held_out.jsonl")]
    groups = list(map(group_from_json, rows))
    measures = _measures(groups, evaluation)
    raw = {name: measure for name, measure in measures.items() if not measure.parts}
    scores, prompts = dict[str, dict[str, dict[str, Score]]](), dict[str, dict[str, Any]]()
    for score in scores_of(groups, evaluation["policies"], raw).rows:
        if score.value is not None or score.missing:
            own = scores.setdefault(score.metric, {}).setdefault(score.policy, {})
            prompts.setdefault(score.metric, {})[score.prompt] = score.unit
            own[score.prompt] = score
            if raw[score.metric].kind == "metric":  # no length fools it
                own[score.prompt] = score._replace(length=None)
    found: dict[str, Any] = {column: {} for column in COLUMNS}
    found["prompts"] = {metric: list(own.items()) for metric, own in prompts.items()}
    for metric, policies in scores.items():
        for policy, own in policies.items():
            for column, fact in COLUMNS.items():
                values = [getattr(own.get(key), fact, None) for key in prompts[metric]]
                if values.count(None) < len(values):
                    found[column].setdefault(metric, {})[policy] = values
    found["measures"] = {name: asdict(measure) for name, measure in measures.items()}
    for name in ("headline", "baseline", "policies", "sampling"):
        found[name] = evaluation[name]
    found["answers"] = [row for row in evaluation["results"] if row["kind"] == ANSWERS]
    parts = read_record(folder).get("depends_on", {})
    options = parts.get("component", {}).get("options", {})
    found["measured"] = {name: digest(options.get(name)) for name in DECIDES}
    for name, key in parts.get("upstream", {}).items():
        if name not in evaluation["policies"]:
            found["measured"][name] = key
    return found


def _measures(groups: Sequence[Group], evaluation: Mapping[str, Any]) -> dict[str, Measure]:
    """What the metrics of examples, composites, metrics and rewards of an evaluation mean, in the
    order in which they decide.
    """
    found, composites = dict[str, Measure](), evaluation.get("composites", {})
    # The policy of the first rows may lack some
    first = {name: place for place, name in enumerate([*examples.METRICS, *composites])}
    for row in sorted(
        main_rows(rows_in(evaluation)), key=lambda row: first.get(row.metric, len(first))
    ):
        if row.kind in ("metric", "reward"):
            own = {row.policy: row.trained_on}
            scale = examples.scale_of(row.metric)
            if row.metric not in examples.METRICS:
                scale = scale_of(groups, row.metric)
            facts = row.kind, scale, row.lower, row.percent, row.tested
            if row.metric in found:
                own = {**found[row.metric].trained_on, **own}
            parts = composites.get(row.metric, {})
            found[row.metric] = Measure(*facts, own, parts, row.margin)
    return found


# Reading


def scores_in(evaluations: Sequence[tuple[Mapping[str, Any], Mapping[str, str], int]]) -> Scores:
    """The scores of evaluations, each with the names of its policies here and the seed of its run.
    A policy without a name is left out.
    """
    table = Scores()
    for evaluation, names, seed in evaluations:
        for metric, plain in evaluation["measures"].items():
            own = {name: plain["trained_on"].get(policy) for policy, name in names.items()}
            here = _measure(plain)
            known = table.measures.get(metric, here)
            scale = known.scale
            if scale and here.scale and scale.levels != here.scale.levels:
                scale = replace(scale, levels=None)  # by chance all scores of one were 0 or 1
            table.measures[metric] = replace(
                known,
                scale=scale,
                percent=known.percent and here.percent,
                trained_on={**known.trained_on, **own},
            )
            table.rows.extend(_scores(evaluation, metric, names, seed))
    table.combine()
    return table


def _measure(plain: Mapping[str, Any]) -> Measure:
    scale = plain["scale"]
    if scale:
        pairs = {name: tuple(scale[name]) for name in ("levels", "bounds") if scale[name]}
        scale = Scale(**{**scale, **pairs})
    return Measure(**{**plain, "scale": scale, "trained_on": {}})


def _scores(
    evaluation: Mapping[str, Any], metric: str, names: Mapping[str, str], seed: int
) -> Iterator[Score]:
    prompts = evaluation["prompts"].get(metric, ())
    for policy in evaluation["scores"].get(metric, ()):
        columns = dict[str, Sequence[Any]]()
        for column, fact in COLUMNS.items():
            none = [None] * len(prompts)
            columns[fact] = evaluation.get(column, {}).get(metric, {}).get(policy, none)
        for at, (prompt, unit) in enumerate(prompts if policy in names else ()):
            facts = {fact: values[at] for fact, values in columns.items()}
            yield Score(metric, names[policy], prompt, unit=unit, seed=seed, **facts)
