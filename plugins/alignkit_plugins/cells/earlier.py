"""What a run found before, next to what it finds now: the rows of its own folder, of which each is
there for another result of a policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.io.results import read_record
from alignkit_plugins.cells.changes import differing
from alignkit_plugins.cells.rows import own_rows_of, scores_in
from alignkit_plugins.cells.table import apart, compared, difference
from alignkit_plugins.command_line.find import results_of_stage
from alignkit_plugins.compare.rows import Row, adjusted, plain, rows_in

SAME = ("sampling", "measures", "prompts")  # parts of evaluations that compare
ONE_SEED = "One seed each: intervals are over prompts only."

Change = dict[str, Any]


def changed(run: Path, stage: str) -> list[Change]:
    """Each policy that an evaluation step has compared with other results, for report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `settings` (in which they differ),
    `results`: rows of these and of still earlier results, as in evaluation.json, and `notes`: on
    those, and why others do not compare.
    """
    key, found = read_record(run / stage).get("hash"), list[Change]()
    rows = [row for row in own_rows_of(run) if stage in row["evaluations"]]
    rows.sort(key=lambda row: row["stages"][stage]["finished"], reverse=True)
    for now in rows:
        if now["stages"][stage]["hash"] == key:
            for policy in now["evaluations"][stage]["policies"]:
                found += _of_policy(run, stage, policy, now, rows)
    return found


def _of_policy(
    run: Path, stage: str, policy: str, now: Mapping[str, Any], rows: Sequence[Any]
) -> Iterator[Change]:
    """What is said of the results of a policy, if there are several. rows: the newest first."""
    records, names = dict[str, Any](), dict[str, str]()
    for name, folder in results_of_stage(run, policy).items():
        records[name] = read_record(folder)
        names[records[name]["hash"]] = name
    result = names.pop(_key(now, policy), "")
    ours, others, left_out = now["evaluations"][stage], dict[str, Any](), dict[str, str]()
    for row in rows if result else ():
        name, theirs = names.get(_key(row, policy), ""), row["evaluations"][stage]
        if name and name not in others and policy in theirs["policies"]:
            if why := _difference(now, row, stage):
                left_out[name] = f"{result} and {name} do not compare: {why}."
            else:
                others[name] = theirs
                left_out.pop(name, None)
    first, *older = [*others, ""]
    settings, results, notes = list[str](), list[Row](), [*left_out.values()]
    if first:
        evaluations = [(one, {policy: name}, 0) for name, one in others.items()]
        scores = scores_in([*reversed(evaluations), (ours, {policy: result}, 0)])
        results += adjusted(compared(scores, first, [result]), of_cells=True)
        for name, one in others.items():
            answers = rows_in({"results": one["answers"]})
            results += [replace(row, policy=name) for row in answers if row.policy == policy]
        settings += differing(_parts(records[first]), _parts(records[result]), "algorithm")
        for further in apart(scores, ours["headline"], older[:-1], [result]):
            notes.append(f"{further}.")
    if results or notes:
        names_of = {"stage": stage, "policy": policy, "result": result, "against": first}
        found = {"settings": settings, "results": list(map(plain, results)), "notes": notes}
        yield {**names_of, **found}


def _difference(now: Mapping[str, Any], row: Mapping[str, Any], stage: str) -> str:
    """In what the evaluations of two rows differ, so that they do not compare; or an empty text."""
    ours, theirs = (one["evaluations"][stage] for one in (now, row))
    measured = {**ours["measured"], **theirs["measured"]}
    why = difference(ours["measured"], theirs["measured"], [*measured])
    return why or difference(now, row, ["seed"]) or difference(ours, theirs, SAME)


def _parts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on, with the learning rate that it had."""
    parts, rate = record["depends_on"], record["summary"].get("learning_rate")
    return {**parts, "settings": {**parts["settings"], "learning_rate": rate}}


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
