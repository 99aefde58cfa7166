"""Answers side by side: those of a policy before and after, and a stage's current result against
the one before it.

Nothing is sampled again: an evaluation that was set aside has the answers of an earlier result to
the same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.data.group import Group, group_from_json, with_responses
from alignkit.io.results import folders_of, json_lines, read_record, results_of_stage
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.compare.rows import ANSWERS, Row, adjusted, main_rows, plain, rows_in
from alignkit_plugins.compare.scores import Measure, compare, keys_of, scale_of, scores_of
from alignkit_plugins.compare.verdicts import verdicts
from alignkit_plugins.report.changes import changes, differing
from alignkit_plugins.report.history import read_object
from alignkit_plugins.text.readable import number
from alignkit_plugins.text.rows import turns_text

EACH = 5  # samples of each kind
SEED = 0  # for samples at random
LONGEST = 2000  # characters that a report keeps of a turn and of an answer
# Options that both evaluations must share
DECIDES = ("prompts", "rewards", "metrics", "composites", "examples")

Sample = dict[str, Any]
Swap = dict[str, Any]


# Policies of one evaluation


def samples(stage: str, folder: Path, evaluation: Mapping[str, Any]) -> list[Sample]:
    """The largest gains and losses of an evaluation, and some drawn at random, from its
    samples.jsonl. Each prompt is there once.

    Each has `stage`, `kind` (gain, loss or random), `row`, `reward` (what decides, or its first part),
    `percent` (whether it is a share), `difference` (after minus before, or None), `prompt` (turns) and
    `answers`: of the base model, the baseline and the result each the first, with the mean score of
    all, on which the statistics rest.
    """
    baseline, reward = str(evaluation.get("baseline")), str(evaluation.get("headline"))
    others = [name for name in evaluation["policies"] if name != baseline]
    wanted = [name for name in evaluation["policies"] if name in ("base", baseline, *others[-1:])]
    lower = percent = False
    lost = {one.metric for one in verdicts(rows_in(evaluation)) if one.outcome == "lost"}
    for row in rows_in(evaluation):
        if row.metric in lost and row.kind == "metric":
            reward = row.metric
    reward = next(iter(evaluation.get("composites", {}).get(reward, [reward])))
    for row in rows_in(evaluation):
        if row.metric == reward:
            lower, percent = row.lower, row.percent
    every = list[Sample]()
    for place, group in enumerate(json_lines(folder / "samples.jsonl"), 1):
        answers = dict[str, Any]()
        for name in wanted:
            if answer := _answer(group["responses"], name, reward):
                answers[name] = answer
        if len(answers) < len(wanted):
            continue
        before, after = (answers.get(name, {}).get("score") for name in (baseline, wanted[-1]))
        difference = None if before is None or after is None else after - before
        prompt = [{**turn, "content": _cut(turns_text([turn]))} for turn in group["prompt"]]
        facts = {"stage": stage, "row": place, "reward": reward, "percent": percent}
        facts |= {"difference": difference, "prompt": prompt}
        every.append({**facts, "answers": list(answers.values())})
    return _chosen(every, -1 if lower else 1)


def _answer(responses: Sequence[Mapping[str, Any]], policy: str, reward: str) -> Any:
    """The first answer of a policy; None if it has none."""
    answers = [one for one in responses if one.get("source") == policy]
    if not answers:
        return None
    first, scores = answers[0], list[float]()
    for one in answers:
        score = number(one.get("scores", {}).get(reward))
        if score is not None:
            scores.append(score)
    turns = [f"[{turn['role']}] {turns_text([turn])}" for turn in first.get("messages") or ()]
    return {
        "policy": policy,
        "text": _cut("\n\n".join(turns) or first.get("text") or ""),
        "score": fmean(scores) if scores else None,
        "tokens": len(first.get("tokens") or ()),
        "truncated": bool(first.get("truncated")),
    }


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({len(text) - LONGEST:,} more characters)"


def _chosen(every: Sequence[Sample], sign: int) -> list[Sample]:
    """sign: -1 if lower scores are better."""
    ranked = sorted(every, key=lambda one: -sign * (one["difference"] or 0.0))
    found = dict[int, Sample]()
    for kind, ends, way in (("gain", ranked, sign), ("loss", ranked[::-1], -sign)):
        for one in ends[:EACH]:
            if way * (one["difference"] or 0.0) > 0:
                found[one["row"]] = {**one, "kind": kind}
    rest = [one for one in every if one["row"] not in found]
    for one in random.Random(SEED).sample(rest, min(EACH, len(rest))):
        found[one["row"]] = {**one, "kind": "random"}
    return list(found.values())


# Results of one stage


def swaps_of(run: Path, stage: str) -> list[Swap]:
    """The current result of each evaluated policy against the newest earlier one that the stage
    evaluated, for report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `settings` (in which they differ),
    `differs` (why they do not compare, or an empty text) and `results`: rows of the current result
    against the earlier one, as in evaluation.json.
    """
    folder, found = run / stage, list[Swap]()
    for policy in read_object(folder / "evaluation.json").get("policies", ()):
        names, records = dict[str, str](), dict[str, Any]()
        for name, result in results_of_stage(run, policy).items():
            records[name] = read_record(result)
            names[records[name]["hash"]] = name
        now = names.pop(_key(folder, policy), "")
        earlier = dict[str, Path]()
        for before in folders_of(run, stage):
            earlier[_key(before, policy)] = before
        for key, then in names.items():
            if now and key in earlier:
                swap = _compared(folder, earlier[key], policy, now, then)
                names_of = {"stage": stage, "policy": policy, "result": now, "against": then}
                settings = _unequal(records[then], records[now])
                found.append({**names_of, "settings": settings, **swap})
                break
    return found


def _unequal(*records: Mapping[str, Any]) -> list[str]:
    """In what two results differ, with the learning rates that they had, in words."""
    sides = list[dict[str, Any]]()
    for record in records:
        rate = {"learning_rate": record["summary"].get("learning_rate")}
        parts = record["depends_on"]
        sides.append({**parts, "settings": {**parts["settings"], **rate}})
    return differing(sides[0], sides[1], "algorithm")


def _key(folder: Path, policy: str) -> str:
    """The key of the result that a complete evaluation is of; empty for none."""
    record = read_record(folder)
    if not record.get("complete"):
        return ""
    return str(record["depends_on"].get("upstream", {}).get(policy, ""))


def _compared(folder: Path, before: Path, policy: str, now: str, then: str) -> Swap:
    """`differs` and `results` of a swap. before: the folder of the earlier evaluation."""
    current, old = (read_object(one / "evaluation.json") for one in (folder, before))
    differs = _difference(folder, before, {*current["policies"], *old["policies"]})
    if current["sampling"] != old["sampling"]:
        differs = "the sampling has changed"
    groups = _joined(folder, before, policy, now, then)
    if not groups:
        differs = "they answered no prompt in common"
    if differs:
        return {"differs": differs, "results": []}
    measures = dict[str, Measure]()
    for row in main_rows(rows_in(current)):
        if row.policy == policy and row.kind in ("metric", "reward"):
            scale, own = scale_of(groups, row.metric), {now: row.trained_on}
            facts = row.kind, scale, row.lower, row.percent, row.tested, own
            parts = current.get("composites", {}).get(row.metric, {})
            measures[row.metric] = Measure(*facts, parts)
    rows = adjusted(compare(scores_of(groups, [then, now], measures), then))
    for row in rows_in(old):
        if row.policy == policy and row.kind == ANSWERS:
            rows.append(replace(row, policy=then))
    return {"differs": "", "results": list(map(plain, rows))}


def _difference(folder: Path, before: Path, policies: set[str]) -> str:
    """Why two evaluations do not compare; empty if they do."""
    parts = [read_record(one)["depends_on"] for one in (before, folder)]
    for change in changes(*parts):
        path = [str(key) for key in change.path]
        if path[:2] == ["component", "options"] and path[2] in DECIDES:
            return f"the {path[2]} have changed"
        if path[0] == "upstream" and path[1] not in policies:
            return f"{path[1]} has changed"
    return ""


def _joined(folder: Path, before: Path, policy: str, now: str, then: str) -> list[Group]:
    """The prompts that both evaluations have, with the answers of both results as their sources."""
    earlier, found = _groups(before), list[Group]()
    for key, group in _groups(folder).items():
        if key in earlier:
            answers = [replace(one, source=now) for one in answers_of(group, policy)]
            answers += [replace(one, source=then) for one in answers_of(earlier[key], policy)]
            found.append(with_responses(group, answers))
    return found


def _groups(folder: Path) -> dict[str, Group]:
    """The answers to the prompts, and the scores of held-out examples."""
    rows = [*json_lines(folder / "samples.jsonl"), *json_lines(folder / "held_out.jsonl")]
    groups = list(map(group_from_json, rows))
    return dict(zip(keys_of(groups), groups, strict=True))


def evaluated(facts: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of all evaluations in a run's facts, by stage."""
    found = dict[str, list[Row]]()
    for item in facts["evaluations"]:
        swaps = [swap for swap in facts["swaps"] if swap["stage"] == item["stage"]]
        found[item["stage"]] = with_earlier(item["evaluation"], swaps)
    return found


def with_earlier(evaluation: Mapping[str, Any], swaps: Sequence[Swap]) -> list[Row]:
    """The rows of an evaluation, with those of earlier results in front of the current ones."""
    names, earlier, found = dict[str, str](), dict[str, list[Row]](), list[Row]()
    for swap in swaps:
        if swap["results"]:
            names[swap["policy"]] = swap["result"]
            rows = rows_in(swap)
            earlier[swap["policy"]] = [row for row in rows if row.policy == swap["against"]]
    for row in rows_in(evaluation):
        found += earlier.pop(row.policy, [])
        policy, baseline = (names.get(name, name) for name in (row.policy, row.baseline))
        found.append(replace(row, policy=policy, baseline=baseline))
    return found
