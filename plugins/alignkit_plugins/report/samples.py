"""Answers side by side: those of a policy before and after."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.io.results import json_lines
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.compare.verdicts import verdicts
from alignkit_plugins.text.readable import number
from alignkit_plugins.text.rows import turns_text

EACH = 5  # samples of each kind
SEED = 0  # for samples at random
LONGEST = 2000  # characters that a report keeps of a turn and of an answer

Sample = dict[str, Any]


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
