"""Answers before and after: the largest gains and losses, and some drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from alignkit_plugins.compare.readable import number
from alignkit_plugins.compare.rows import rows_of
from alignkit_plugins.report.files import each_object

EACH = 5  # samples of each kind
SEED = 0  # of those at random
PROMPT = ANSWER = 2000  # characters that a report keeps of a turn and of an answer


class Answer(TypedDict):
    """A policy's first answer to a prompt. tokens: how many; None if unknown."""

    policy: str
    text: str
    score: float | None
    tokens: int | None
    truncated: bool


class Sample(TypedDict):
    """A prompt with answers. kind: gain, loss or random. difference: in the headline's reward, or
    None.
    """

    stage: str
    kind: str
    row: int
    reward: str
    difference: float | None
    prompt: list[dict[str, str]]
    answers: list[Answer]


def samples(stage: str, folder: Path, summary: Mapping[str, Any]) -> list[Sample]:
    """Samples of an evaluation, from its samples.jsonl. Each prompt is there once."""
    policies, every = _policies(summary), []
    for row, group in enumerate(each_object(folder / "samples.jsonl"), 1):
        if (sample := _sample(stage, row, group, policies, summary)) is not None:
            every.append(sample)
    lower = any(row.lower for row in rows_of(summary) if row.metric == summary.get("headline"))
    return list(_chosen(every, -1 if lower else 1))


def _policies(summary: Mapping[str, Any]) -> list[str]:
    """The policies whose answers are shown: the base model, the baseline and the result."""
    names, before = [*summary.get("policies", ())], summary.get("baseline")
    after = [name for name in names if name != before][-1:]
    return [name for name in names if name in ("base", before, *after)]


def _chosen(every: Sequence[Sample], sign: int) -> Iterator[Sample]:
    """The largest gains and losses, and others by chance. sign: -1 if lower scores are better."""

    def gain(sample: Sample) -> float:
        return sign * (sample["difference"] or 0.0)

    kinds = {"gain": [one for one in sorted(every, key=gain, reverse=True) if gain(one) > 0][:EACH]}
    kinds["loss"] = [one for one in sorted(every, key=gain) if gain(one) < 0][:EACH]
    taken = [one["row"] for found in kinds.values() for one in found]
    rest = [one for one in every if one["row"] not in taken]
    kinds["random"] = random.Random(SEED).sample(rest, min(EACH, len(rest)))
    for kind, found in kinds.items():
        for one in found:
            yield {**one, "kind": kind}


def _sample(
    stage: str,
    row: int,
    group: Mapping[str, Any],
    policies: Sequence[str],
    summary: Mapping[str, Any],
) -> Sample | None:
    """A group as a sample, compact; None if a policy has no answer in it."""
    reward, answers = str(summary.get("headline")), []
    for policy in policies:
        if (answer := _answer(group["responses"], policy, reward)) is None:
            return None
        answers.append(answer)
    if not answers:
        return None
    before = next(
        (answer["score"] for answer in answers if answer["policy"] == summary.get("baseline")), None
    )
    after = answers[-1]["score"]
    difference = None if before is None or after is None else after - before
    prompt = [
        {"role": turn["role"], "content": _cut(turn["content"], PROMPT)} for turn in group["prompt"]
    ]
    return Sample(
        stage=stage,
        kind="",
        row=row,
        reward=reward,
        difference=difference,
        prompt=prompt,
        answers=answers,
    )


def _answer(responses: Sequence[Mapping[str, Any]], policy: str, reward: str) -> Answer | None:
    """The first answer, with the mean score of all of the policy's answers, on which the statistics
    rest.
    """
    own = [response for response in responses if response.get("source") == policy]
    if not own:
        return None
    scores = [
        score for one in own if (score := number(one.get("scores", {}).get(reward))) is not None
    ]
    tokens = own[0].get("tokens")
    return {
        "policy": policy,
        "text": _cut(_words(own[0]), ANSWER),
        "score": sum(scores) / len(scores) if scores else None,
        "tokens": len(tokens) if isinstance(tokens, list) else None,
        "truncated": bool(own[0].get("truncated")),
    }


def _words(response: Mapping[str, Any]) -> str:
    """A response's text, or its turns one after the other."""
    turns = response.get("messages")
    if isinstance(turns, list):
        return "\n\n".join(
            f"[{turn.get('role', '')}] {turn.get('content') or ''}" for turn in turns
        )
    return str(response.get("text") or "")


def _cut(text: str | None, limit: int) -> str:
    words = text or ""
    return (
        words
        if len(words) <= limit
        else f"{words[:limit]}... ({len(words) - limit:,} more characters)"
    )
