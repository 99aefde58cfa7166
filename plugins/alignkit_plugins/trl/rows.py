"""Groups as rows of TRL's conversational data sets."""

from __future__ import annotations

from typing import Any

from alignkit import DataError, Group, Message
from alignkit.data.group import preview, resolved_pairs, why_not_demonstration

Turns = list[dict[str, str]]
Row = dict[str, Any]


def _turn(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _conversation(group: Group) -> Turns:
    return [_turn(message) for message in group.prompt]


def _completion(group: Group, place: int) -> Turns:
    """A response as TRL's completion. Raises DataError for several turns, because TRL would learn
    the user's, too.
    """
    response = group.responses[place]
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    if len(response.messages) > 1:
        raise DataError(
            f"trl: a response to {preview(group)} has several turns, and TRL would learn the "
            "user's, too"
        )
    return [_turn(message) for message in response.messages]


def demonstrations(group: Group) -> list[Row]:
    """A row for each learned turn of the assistant; the earlier turns are its prompt."""
    if fault := why_not_demonstration(group):
        raise DataError(
            f"trl: sft learns from demonstrations, but the row with the prompt {preview(group)} "
            f"{fault}"
        )
    response, before, rows = group.responses[0], _conversation(group), []
    for message in response.messages or (Message(role="assistant", content=response.text),):
        if message["role"] == "assistant" and message.get("train", True):
            rows.append({"prompt": list(before), "completion": [_turn(message)]})
        before.append(_turn(message))
    return rows


def pairs(group: Group) -> list[Row]:
    """A row for each pair in its likelier order, without undecided ones: TRL has no soft labels."""
    rows = []
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p != 0.5:
            margin = float(pair.margin) if isinstance(pair.margin, int | float) else 0.0
            answers = {"chosen": _completion(group, better), "rejected": _completion(group, worse)}
            rows.append({"prompt": _conversation(group), **answers, "margin": margin})
    return rows
