"""Answers before and after: the largest gains and losses, and some drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit_plugins.compare.readable import number
from alignkit_plugins.compare.rows import rows_of
from alignkit_plugins.report.history import json_lines

EACH = 5  # samples of each kind
SEED = 0  # of those at random
LONGEST = 2000  # characters that a report keeps of a turn and of an answer

Sample = dict[str, Any]


def samples(stage: str, folder: Path, evaluation: Mapping[str, Any]) -> list[Sample]:
    """Samples of an evaluation, from its samples.jsonl. Each prompt is there once.

    Each has `stage`, `kind` (gain, loss or random), `row`, `reward` (the headline), `difference`
    (after minus before, or None), `prompt` (turns) and `answers`: of the base model, the baseline
    and the result each the first, with the mean score of all, on which the statistics rest.
    """
    policies, baseline = list(evaluation["policies"]), evaluation.get("baseline")
    result = [name for name in policies if name != baseline][-1:]
    wanted = [name for name in policies if name in ("base", baseline, *result)]
    reward = str(evaluation.get("headline"))
    every = list[Sample]()
    for row, group in enumerate(json_lines(folder / "samples.jsonl"), 1):
        answers = {name: _answer(group["responses"], name, reward) for name in wanted}
        if None in answers.values():
            continue
        before, after = (_score(answers.get(name)) for name in (baseline, *result, None)[:2])
        gain = None if before is None or after is None else after - before
        prompt = [{**turn, "content": _cut(turn["content"])} for turn in group["prompt"]]
        facts = {"stage": stage, "row": row, "reward": reward, "difference": gain}
        every.append({**facts, "prompt": prompt, "answers": list(answers.values())})
    lower = any(row.lower for row in rows_of(evaluation) if row.metric == reward)
    return list(_chosen(every, -1 if lower else 1))


def _chosen(every: Sequence[Sample], sign: int) -> Iterator[Sample]:
    """The largest gains and losses, and others by chance. sign: -1 if lower scores are better."""
    gains = [one for one in every if sign * (one["difference"] or 0.0) > 0]
    losses = [one for one in every if sign * (one["difference"] or 0.0) < 0]
    gains = sorted(gains, key=lambda one: -abs(one["difference"]))[:EACH]
    losses = sorted(losses, key=lambda one: -abs(one["difference"]))[:EACH]
    rest = [one for one in every if one not in gains and one not in losses]
    others = random.Random(SEED).sample(rest, min(EACH, len(rest)))
    for kind, samples in (("gain", gains), ("loss", losses), ("random", others)):
        for one in samples:
            yield {**one, "kind": kind}


def _answer(
    responses: Sequence[Mapping[str, Any]], policy: str, reward: str
) -> dict[str, Any] | None:
    answers = [one for one in responses if one.get("source") == policy]
    if not answers:
        return None
    first = answers[0]
    scores = [number(one.get("scores", {}).get(reward)) for one in answers]
    values = [score for score in scores if score is not None]
    turns = [f"[{turn['role']}] {turn['content'] or ''}" for turn in first.get("messages") or ()]
    return {
        "policy": policy,
        "text": _cut("\n\n".join(turns) or first.get("text")),
        "score": fmean(values) if values else None,
        "tokens": len(first["tokens"]) if first.get("tokens") else None,
        "truncated": bool(first.get("truncated")),
    }


def _score(answer: dict[str, Any] | None) -> float | None:
    return (answer or {}).get("score")


def _cut(text: str | None) -> str:
    words = text or ""
    if len(words) <= LONGEST:
        return words
    return f"{words[:LONGEST]}... ({len(words) - LONGEST:,} more characters)"
