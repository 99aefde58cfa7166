"""Rows as TRL's trainers and other tools read them: conversations are lists of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.data.group import Message
from alignkit_plugins.people.items import Answer
from alignkit_plugins.people.labels import DEGREES

Row = dict[str, Any]
Prompt = Sequence[Message]


def demonstration(prompt: Prompt, answer: Answer) -> Row:
    return {"prompt": list(prompt), "completion": turns(answer)}


def preference(prompt: Prompt, better: Answer, worse: Answer, margin: float) -> Row:
    return {"prompt": list(prompt), "chosen": turns(better), "rejected": turns(worse), "margin": round(margin, 6)}


def ranked(prompt: Prompt, answers: Sequence[Answer], ranks: Sequence[float]) -> Row:
    """ranks: 1 is best, and equal ranks are ties."""
    return {"prompt": list(prompt), "completions": [turns(answer) for answer in answers], "ranks": list(ranks)}


def turns(answer: Answer) -> list[Any]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)


def margin_of(level: float | str | None) -> float:
    """A margin as a number: 0, 1/3, 2/3 or 1 for Llama 2's four levels (Touvron et al. 2023, table 27, small)."""
    return (DEGREES[level] - 1) / 3 if isinstance(level, str) else level or 0.0
