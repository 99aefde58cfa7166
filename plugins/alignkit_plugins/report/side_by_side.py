"""A stage's results side by side: what the evaluation of each found, and how they differ prompt by
prompt.

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
from alignkit_plugins.report.files import each_object, read_object

MOST = 3  # earlier results of a policy, the newest ones
Pair = dict[str, Any]


def pairs_of(run: Path, stage: str) -> list[Pair]:
    """The current result of each evaluated policy against its earlier ones, as plain data for
    report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `folder` and `kept` (where both
    are), `differs` (why they do not compare, or an empty string) and `evaluation`: of the current
    result against the earlier one, with keys of an evaluation.json, or empty. Raises what reading
    damaged files raises.
    """
    record, summary = read_record(run / stage), read_object(run / stage / "evaluation.json")
    if not record.get("complete") or not summary:
        return []
    earlier = _earlier(run, stage)
    return [
        _pair(run, stage, str(policy), now, then, earlier[policy, hash])
        for policy in summary["policies"]
        for now, then, hash in _results(run, str(policy), record)
        if (policy, hash) in earlier
    ]


def _results(run: Path, policy: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The name of a policy's result that was evaluated, with the name and the hash of each earlier
    one.
    """
    results = {
        name: read_record(folder)["hash"] for name, folder in results_of_stage(run, policy).items()
    }
    now = next((name for name in results if results[name] == _upstream(record).get(policy)), None)
    if now is not None:
        yield from (
            (now, name, results[name]) for name in [name for name in results if name != now][:MOST]
        )


def _earlier(run: Path, stage: str) -> dict[tuple[str, str], Path]:
    """The newest evaluation that was set aside, by policy and hash of its result."""
    current = (run / stage).resolve()
    folders = [folder for folder in folders_of(run, stage) if folder.resolve() != current]
    found: dict[tuple[str, str], Path] = {}
    for folder in sorted(folders, key=lambda folder: (folder / "stage.json").stat().st_mtime):
        record, summary = read_record(folder), read_object(folder / "evaluation.json")
        upstream = _upstream(record)
        found |= {
            (name, upstream[name]): folder
            for name in summary.get("policies", ())
            if name in upstream
        }
    return found


def _upstream(record: Mapping[str, Any]) -> Mapping[str, str]:
    """The hashes of the stages that a complete result depends on."""
    return record["depends_on"].get("upstream", {}) if record.get("complete") else {}


def _pair(run: Path, stage: str, policy: str, now: str, then: str, before: Path) -> Pair:
    folder = run / stage
    summary, old = read_object(folder / "evaluation.json"), read_object(before / "evaluation.json")
    pair: Pair = {
        "stage": stage,
        "policy": policy,
        "result": now,
        "against": then,
        "folder": find_result(run, now).relative_to(run).as_posix(),
        "kept": find_result(run, then).relative_to(run).as_posix(),
        "differs": _difference(
            summary, old, [read_record(folder)["depends_on"], read_record(before)["depends_on"]]
        ),
        "evaluation": {},
    }
    if pair["differs"]:
        return pair
    groups = _joined(folder, before, policy, now, then)
    if not groups:
        return {**pair, "differs": "they answered no prompt in common"}
    rows = list[Row]()
    for row in main_rows(rows_of(summary)):
        if row.policy == policy and row.kind in ("metric", "reward"):
            facts = {"lower": row.lower, "percent": row.percent, "tested": row.tested}
            learned = {now: row.trained_on}
            rows += rated(
                groups, [then, now], then, row.metric, kind=row.kind, trained_on=learned, **facts
            )
    rows = adjusted(rows)
    for result, one in ((then, old), (now, summary)):
        for row in rows_of(one):
            if row.policy == policy and row.kind == ANSWERS:
                rows.append(replace(row, policy=result))
    return {**pair, "evaluation": {"results": list(map(plain, rows))}}


def _difference(
    now: Mapping[str, Any], then: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str:
    """Why two evaluations do not compare; empty if they do. records: what they depend on."""
    options = [one["component"]["options"] for one in records]
    if options[0].get("prompts") != options[1].get("prompts"):
        return "the prompts have changed"
    if now["sampling"] != then["sampling"]:
        return "the sampling has changed"
    for kind in ("rewards", "metrics", "examples"):
        if options[0].get(kind) != options[1].get(kind):
            return f"the {kind} have changed"
    policies = {str(name).partition("@")[0] for one in (now, then) for name in one["policies"]}
    upstream = [
        {k: v for k, v in one["upstream"].items() if k.partition("@")[0] not in policies}
        for one in records
    ]
    changed = [name for name in upstream[0] if upstream[0][name] != upstream[1].get(name)]
    return (
        f"{', '.join(changed)} {'have' if len(changed) > 1 else 'has'} changed" if changed else ""
    )


def _joined(folder: Path, before: Path, policy: str, now: str, then: str) -> list[Group]:
    """The prompts that both evaluations have, with the answers of both results as their sources."""
    earlier = _groups(before)
    joined = []
    for key, group in _groups(folder).items():
        if key in earlier:
            answers = [replace(response, source=now) for response in answers_of(group, policy)]
            for response in answers_of(earlier[key], policy):
                answers.append(replace(response, source=then))
            joined.append(replace(group, responses=tuple(answers)))
    return joined


def _groups(folder: Path) -> dict[str, Group]:
    """The answers to the prompts, and the scores of held-out examples, of which several may have
    one prompt.
    """
    found: dict[str, Group] = {}
    counts = Counter[str]()
    for name in ("samples.jsonl", "held_out.jsonl"):
        for row in each_object(folder / name):
            group = group_from_json(row)
            words = repr((group.prompt, sorted(group.meta.items())))
            counts[words] += 1
            found[f"{counts[words]} {words}"] = group
    return found


def evaluated(facts: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of all evaluations in a run's facts, by stage."""
    found = {}
    for item in facts["evaluations"]:
        pairs = [pair for pair in facts["swaps"] if pair["stage"] == item["stage"]]
        found[item["stage"]] = with_earlier(item["evaluation"], pairs)
    return found


def with_earlier(summary: Mapping[str, Any], pairs: Sequence[Pair]) -> list[Row]:
    """The rows of an evaluation, with those of earlier results of its policies in front of the
    current ones.
    """
    known = [pair for pair in reversed(pairs) if pair["evaluation"]]
    names = {pair["policy"]: pair["result"] for pair in known}
    rows = [
        replace(
            row,
            policy=names.get(row.policy, row.policy),
            baseline=names.get(row.baseline, row.baseline),
        )
        for row in rows_of(summary)
    ]
    for pair in known:
        old = rows_of(pair["evaluation"])
        place = next(at for at, row in enumerate(rows) if row.policy == pair["result"])
        rows[place:place] = [row for row in old if row.policy == pair["against"]]
    return rows


def not_compared(pairs: Sequence[Pair]) -> list[str]:
    """Why results and earlier ones do not compare."""
    return [
        f"{one['result']} and {one['against']} do not compare: {one['differs']}"
        for one in pairs
        if one["differs"]
    ]
