"""Groups as rows of TRL's conversational data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignkit import DataError, Group, Message
from alignkit.data.group import preview, resolved_pairs, why_not_demonstration
from alignkit_plugins.data.groups import with_labels

if TYPE_CHECKING:
    import numpy as np

Turns = list[dict[str, str]]
Row = dict[str, Any]

PARTNERS = 50  # rows that `mismatch_neighbors` tries to swap a row with


def _turn(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _conversation(group: Group) -> Turns:
    return [_turn(message) for message in group.prompt]


def _completion(group: Group, place: int) -> Turns:
    """A response as TRL's completion. Raises DataError for several turns, because TRL would learn the user's, too."""
    response = group.responses[place]
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    if len(response.messages) > 1:
        raise DataError(f"trl: a response to {preview(group)} has several turns, and TRL would learn the user's, too")
    return [_turn(message) for message in response.messages]


def demonstrations(group: Group) -> list[Row]:
    """A row for each learned turn of the assistant; the earlier turns are its prompt."""
    if fault := why_not_demonstration(group):
        raise DataError(f"trl: sft learns from demonstrations, but the row with the prompt {preview(group)} {fault}")
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


def thumbs(group: Group) -> list[Row]:
    """A row for each labeled response."""
    labeled = with_labels(group)
    return [
        {"prompt": _conversation(group), "completion": _completion(labeled, place), "label": response.label}
        for place, response in enumerate(labeled.responses)
    ]


def mismatch_neighbors(rows: Sequence[Row], batch: int, rng: np.random.Generator) -> tuple[list[Row], int]:
    """The rows in an order in which neighbors have different prompts, and the number of rows that still match.

    TRL's KTO keeps the order. To estimate z0 it treats a batch as a ring, and puts each response after the prompt of
    its neighbor.
    """
    order = [rows[place] for place in rng.permutation(len(rows))]

    def matches(place: int) -> bool:
        """Whether a neighbor in the ring has the same prompt."""
        start = place - place % batch
        ring = order[start : start + batch]
        own, prompt = place - start, order[place]["prompt"]
        return len(ring) > 1 and prompt in (ring[own - 1]["prompt"], ring[(own + 1) % len(ring)]["prompt"])

    for place in range(len(order)):
        for other in rng.permutation(len(order))[:PARTNERS].tolist() if matches(place) else ():
            order[place], order[other] = order[other], order[place]
            if not matches(place) and not matches(other):
                break
            order[place], order[other] = order[other], order[place]
    return order, sum(map(matches, range(len(order))))
