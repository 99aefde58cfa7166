"""A stage's results side by side: current ones against earlier ones, prompt by prompt.

Nothing is sampled again: an evaluation that was set aside has the answers of an earlier result to
the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json
from alignkit.io.results import find_result, folders_of, read_record, results_of_stage
from alignkit_plugins.compare.compared import rated
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.compare.rows import ANSWERS, Row, adjusted, main_rows, plain, rows_of
from alignkit_plugins.report.changes import changes
from alignkit_plugins.report.history import json_lines, read_object

MOST = 3  # earlier results of a policy, the newest ones
DECIDES = ("prompts", "rewards", "metrics", "examples")  # options that both evaluations must share
Swap = dict[str, Any]


def swaps_of(run: Path, stage: str) -> list[Swap]:
    """The current result of each evaluated policy against its earlier ones, for report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `folder` and `kept` (where both
    are), `differs` (why they do not compare, or an empty text) and `results`: rows of the current
    result against the earlier one, as in evaluation.json.
    """
    record, evaluation = read_record(run / stage), read_object(run / stage / "evaluation.json")
    if not record.get("complete") or not evaluation:
        return []
    found = list[Swap]()
    for policy in map(str, evaluation["policies"]):
        for now, then, before in _results(run, stage, policy, record):
            names = {"stage": stage, "policy": policy, "result": now, "against": then}
            kept, folder = (find_result(run, name).relative_to(run) for name in (then, now))
            places = {"folder": folder.as_posix(), "kept": kept.as_posix()}
            found.append({**names, **places, **_compared(run / stage, before, policy, now, then)})
    return found


def _results(
    run: Path, stage: str, policy: str, record: Mapping[str, Any]
) -> Iterator[tuple[str, str, Path]]:
    """The name of a policy's evaluated result, and for each earlier one the name and the folder of
    its evaluation.
    """
    results = results_of_stage(run, policy).items()
    keys = {name: read_record(folder)["hash"] for name, folder in results}
    now = [name for name, key in keys.items() if key == _upstream(record).get(policy)]
    earlier = dict[str, Path]()
    for folder in sorted(folders_of(run, stage), key=lambda path: path.stat().st_mtime):
        if folder.resolve() != (run / stage).resolve():
            earlier[_upstream(read_record(folder)).get(policy, "")] = folder
    for then in [name for name in keys if name not in now][:MOST]:
        if now and keys[then] in earlier:
            yield now[0], then, earlier[keys[then]]


def _upstream(record: Mapping[str, Any]) -> Mapping[str, str]:
    """The keys of the stages that a complete result depends on."""
    if not record.get("complete"):
        return {}
    return dict(record["depends_on"].get("upstream", {}))


def _compared(folder: Path, before: Path, policy: str, now: str, then: str) -> Swap:
    """`differs` and `results` of a swap. before: the folder of the earlier evaluation."""
    current, old = (read_object(one / "evaluation.json") for one in (folder, before))
    if differs := _difference(folder, before, {*current["policies"], *old["policies"]}):
        return {"differs": differs, "results": []}
    if current["sampling"] != old["sampling"]:
        return {"differs": "the sampling has changed", "results": []}
    groups = _joined(folder, before, policy, now, then)
    if not groups:
        return {"differs": "they answered no prompt in common", "results": []}
    rows = list[Row]()
    for row in main_rows(rows_of(current)):
        if row.policy == policy and row.kind in ("metric", "reward"):
            rows += rated(
                groups,
                [then, now],
                then,
                row.metric,
                kind=row.kind,
                trained_on={now: row.trained_on},
                lower=row.lower,
                percent=row.percent,
                tested=row.tested,
            )
    rows = adjusted(rows)
    for result, evaluation in ((then, old), (now, current)):
        for row in rows_of(evaluation):
            if row.policy == policy and row.kind == ANSWERS:
                rows.append(replace(row, policy=result))
    return {"differs": "", "results": list(map(plain, rows))}


def _difference(folder: Path, before: Path, policies: set[str]) -> str:
    """Why two evaluations do not compare; empty if they do."""
    parts = [read_record(one)["depends_on"] for one in (before, folder)]
    names = {name.partition("@")[0] for name in policies}
    for change in changes(*parts):
        path = [str(key) for key in change.path]
        if path[:2] == ["component", "options"] and path[2] in DECIDES:
            return f"the {path[2]} have changed"
        if path[0] == "upstream" and path[1].partition("@")[0] not in names:
            return f"{path[1]} has changed"
    return ""


def _joined(folder: Path, before: Path, policy: str, now: str, then: str) -> list[Group]:
    """The prompts that both evaluations have, with the answers of both results as their sources."""
    earlier, found = _groups(before), list[Group]()
    for key, group in _groups(folder).items():
        if key in earlier:
            answers = [replace(one, source=now) for one in answers_of(group, policy)]
            answers += [replace(one, source=then) for one in answers_of(earlier[key], policy)]
            found.append(replace(group, responses=tuple(answers)))
    return found


def _groups(folder: Path) -> dict[str, Group]:
    """The answers to the prompts, and the scores of held-out examples, of which several may have
    one prompt.
    """
    found: dict[str, Group] = {}
    counts = Counter[str]()
    for name in ("samples.jsonl", "held_out.jsonl"):
        for row in json_lines(folder / name):
            group = group_from_json(row)
            words = repr((group.prompt, sorted(group.meta.items())))
            counts[words] += 1
            found[f"{counts[words]} {words}"] = group
    return found


def evaluated(facts: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of all evaluations in a run's facts, by stage."""
    found = {}
    for item in facts["evaluations"]:
        swaps = [swap for swap in facts["swaps"] if swap["stage"] == item["stage"]]
        found[item["stage"]] = with_earlier(item["evaluation"], swaps)
    return found


def with_earlier(evaluation: Mapping[str, Any], swaps: Sequence[Swap]) -> list[Row]:
    """The rows of an evaluation, with those of earlier results in front of the current ones."""
    names = {swap["policy"]: swap["result"] for swap in swaps if swap["results"]}
    found, added = list[Row](), set[str]()
    for row in rows_of(evaluation):
        policy, baseline = (names.get(name, name) for name in (row.policy, row.baseline))
        for swap in reversed(swaps):
            if swap["result"] == policy and swap["against"] not in added:
                added.add(swap["against"])
                found += [one for one in rows_of(swap) if one.policy == swap["against"]]
        found.append(replace(row, policy=policy, baseline=baseline))
    return found
