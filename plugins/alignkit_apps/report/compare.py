"""Runs side by side: how their evaluations, recipes, versions and metrics differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation.readable import number, short, shown
from alignkit.report import Block, Report, Table
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.files import each_object, load_yaml
from alignkit_apps.report.stages import flat

ROWS = 60  # of a table
LONGEST = 24  # characters of a value
NOT_COMPARED = ("name",)  # keys of recipes


def compared(folders: Sequence[Path]) -> Report:
    """A comparison of runs for the terminal. Raises RecipeError for a folder that is not a run's."""
    facts, names = [facts_of(folder) for folder in folders], labels(folders)
    blocks: list[Block] = [_overview(names, facts), *_evaluations(names, facts, folders), *_recipes(names, facts)]
    return Report([*blocks, *_versions(names, facts), *_metrics(names, facts)])


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


def _recipes(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The keys in which the recipes differ, without those of stages that a run does not have."""
    recipes = [{k: v for k, v in load_yaml(one["recipe"]).items() if k not in NOT_COMPARED} for one in facts]
    stages = [one["stages"] if isinstance(one.get("stages"), Mapping) else {} for one in recipes]
    common = set.intersection(*map(set, stages))
    flats = [
        flat({**recipe, "stages": {name: value for name, value in own.items() if name in common}})
        for recipe, own in zip(recipes, stages, strict=True)
    ]
    equal = "the recipes are equal" if common else "no stage is in all of the recipes"
    return _differing("what differs in the recipes", equal, "key", names, flats)


def _versions(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[Block]:
    known = [{**one["reproduce"]["versions"], **one["reproduce"]["machine"]} for one in facts]
    known = [{name: value for name, value in one.items() if name != "memory"} for one in known]
    return _differing("what differs in versions and machines", "versions and machines are equal", "", names, known)


def _differing(
    title: str, equal: str, head: str, names: Sequence[str], values: Sequence[Mapping[str, Any]]
) -> list[Block]:
    keys = [key for key in dict.fromkeys(key for one in values for key in one)]
    differing = [key for key in keys if len({repr(one.get(key)) for one in values}) > 1]
    if not differing:
        return [equal]
    rows = [[key, *(_cell(one.get(key)) if key in one else "-" for one in values)] for key in differing[:ROWS]]
    more = len(differing) - ROWS
    return [Table(title, [head, *names], rows, note=f"and {more} more" if more > 0 else "")]


def _metrics(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The last values of the metrics of stages that have the same name."""
    stages = [{stage["name"]: stage for stage in one["stages"]} for one in facts]
    blocks: list[Block] = []
    for name in dict.fromkeys(name for one in stages for name in one):
        have = [one.get(name) for one in stages]
        if sum(one is not None for one in have) < 2:
            continue
        ends = [one["metrics"] if one else {} for one in have]
        rows = [
            [metric, *(short(number(one.get(metric, {}).get("last"))) for one in ends)]
            for metric in dict.fromkeys(metric for one in ends for metric in one)
        ]
        if rows:
            lines = ", ".join(short(one["lines"]) if one else "-" for one in have)
            blocks.append(Table(f"{name}: metrics at the end (lines: {lines})", ["", *names], rows[:ROWS]))
    own = [sorted(set(one) - set.intersection(*map(set, stages))) for one in stages]
    missing = [f"only {name} has: {', '.join(more)}" for name, more in zip(names, own, strict=True) if more]
    return [*blocks, *(["\n".join(missing)] if missing else [])]


def _evaluations(names: Sequence[str], facts: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[Block]:
    """Mean rewards, lengths and KL by stage and policy; intervals belong together only if the prompts are the same."""
    found = [{item["stage"]: item["evaluation"] for item in one["evaluations"]} for one in facts]
    blocks: list[Block] = []
    for stage in dict.fromkeys(stage for one in found for stage in one):
        values = [_estimates(one.get(stage, {})) for one in found]
        if sum(map(bool, values)) < 2:
            continue
        keys = dict.fromkeys(key for one in values for key in one)
        rows = [[*key, *(shown(one.get(key)) for one in values)] for key in keys]
        note = _about_prompts([folder / stage / "samples.jsonl" for folder in folders])
        title = f"{stage}: mean and 95% interval"
        blocks.append(Table(title, ["policy", "of", *names], rows[:ROWS], keys=2, note=note))
    return blocks


def _estimates(summary: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Every estimate of an evaluation.json by policy and by what it is of."""
    try:
        judged = summary.get("judged") or {}
        return {
            (str(policy), str(what)): estimate
            for policy, measured in summary.get("policies", {}).items()
            for what, estimate in _of_policy(measured, judged.get(policy) or {}).items()
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def _of_policy(measured: Mapping[str, Any], judges: Mapping[str, Any]) -> dict[str, Any]:
    preferred = {f"preferred by {judge}": result.get("preference") for judge, result in judges.items()}
    return {
        **measured["rewards"],
        **preferred,
        "length, tokens": measured.get("length"),
        "KL, nats": measured.get("kl"),
    }


def _about_prompts(files: Sequence[Path]) -> str:
    prompts = [
        [repr(group.get("prompt")) for group in each_object(file) if group is not None]
        for file in files
        if file.is_file()
    ]
    if len(prompts) == len(files) and all(one == prompts[0] for one in prompts):
        return "the prompts are the same"
    return "the prompts differ or are not known to be the same, so means may differ for that reason"


def _cell(value: Any) -> str:
    text = short(value) if not isinstance(value, str) else value
    return text if len(text) <= LONGEST else f"...{text[-LONGEST:]}"
