"""What a run found before, next to what it finds now: the rows of its own folder, of which each is
there for another result of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.io.results import read_record, results_of_stage
from alignkit_plugins.cells.changes import settings_apart
from alignkit_plugins.cells.rows import own_rows_of, scores_in
from alignkit_plugins.cells.table import apart, claimed, compared, difference
from alignkit_plugins.compare.rows import Row, plain, rows_in

SAME = ("sampling", "measures", "prompts")  # parts of evaluations that compare
ONE_SEED = "One seed each: intervals are over prompts only."

Change = dict[str, Any]


def changed(run: Path, stage: str) -> list[Change]:
    """Each policy that an evaluation step has compared with other results, for report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `settings` (in which they differ),
    `results`: rows of these and of still earlier results, as in evaluation.json, and `notes`: on
    those, and why others do not compare.
    """
    key = read_record(run / stage).get("hash")
    rows = [row for row in own_rows_of(run) if stage in row["evaluations"]]
    rows.sort(key=lambda row: row["stages"][stage]["finished"], reverse=True)
    current = [row for row in rows if row["stages"][stage]["hash"] == key]
    found = list[Change]()
    for now in current[:1]:
        for policy in now["evaluations"][stage]["policies"]:
            change = _of_policy(run, stage, policy, now, rows)
            if change["results"] or change["notes"]:
                found.append(change)
    return found


def _of_policy(
    run: Path, stage: str, policy: str, now: Mapping[str, Any], rows: Sequence[Any]
) -> Change:
    """The results of a policy, each the first time that it is in a row."""
    names = dict[str, str]()
    for name, folder in results_of_stage(run, policy).items():
        names[read_record(folder)["hash"]] = name
    ours, others, notes = now["evaluations"][stage], dict[str, Any](), list[str]()
    result = names.pop(_key(now, policy), "")
    for row in rows if result else ():
        name = names.get(_key(row, policy), "")
        theirs = row["evaluations"][stage]
        if not name or name in others or policy not in theirs["policies"]:
            continue
        measured = {**ours["measured"], **theirs["measured"]}
        why = difference(ours["measured"], theirs["measured"], [*measured])
        if why := why or difference(now, row, ["seed"]) or difference(ours, theirs, SAME):
            notes.append(f"{result} and {name} do not compare: {why}.")
        else:
            others[name] = row
    first = "".join([*others][:1])
    found = {"stage": stage, "policy": policy, "result": result, "against": first}
    if not others:
        return {**found, "settings": [], "results": [], "notes": notes}
    evaluations, answers = list[Any](), list[Row]()
    for name, row in reversed(others.items()):
        evaluations.append((row["evaluations"][stage], {policy: name}, 0))
        own = rows_in({"results": row["evaluations"][stage]["answers"]})
        answers += [replace(one, policy=name) for one in own if one.policy == policy]
    scores = scores_in([*evaluations, (ours, {policy: result}, 0)])
    results = claimed(compared(scores, first, [result])) + answers
    for further in apart(scores, ours["headline"], [*others][1:], [result]):
        notes.append(f"{further}.")
    return {
        **found,
        "settings": settings_apart(others[first], now, stage, policy),
        "results": list(map(plain, results)),
        "notes": notes,
    }


def _key(row: Mapping[str, Any], policy: str) -> str:
    return str(row["stages"].get(policy, {}).get("hash"))


def evaluated(facts: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of all evaluations in a run's facts, by stage, with those of earlier results in
    front of the current ones.
    """
    found = dict[str, list[Row]]()
    for item in facts["evaluations"]:
        changes = [one for one in facts["cells"] if one["stage"] == item["stage"]]
        found[item["stage"]] = with_earlier(item["evaluation"], changes)
    return found


def with_earlier(evaluation: Mapping[str, Any], changes: Sequence[Change]) -> list[Row]:
    """The rows of an evaluation, with those of earlier results in front of the current ones."""
    names, earlier, found = dict[str, str](), dict[str, list[Row]](), list[Row]()
    for one in changes:
        if one["results"]:
            names[one["policy"]] = one["result"]
            rows = [row for row in rows_in(one) if row.policy != one["result"]]
            earlier[one["policy"]] = rows
    for row in rows_in(evaluation):
        found += earlier.pop(row.policy, [])
        policy, baseline = (names.get(name, name) for name in (row.policy, row.baseline))
        found.append(replace(row, policy=policy, baseline=baseline))
    return found
