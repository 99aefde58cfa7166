"""A row as people read it: who says what, and what is known of each response."""

from __future__ import annotations

from typing import NamedTuple

from alignkit.data.group import Group, Message, Response, resolved_pairs, said

WIDTH = 88  # characters of a text


class Shown(NamedTuple):
    """What somebody says in a row. facts: what is known of it, such as `margin 1` or `label
    good`.
    """

    who: str
    text: str
    facts: list[str]


def shown(group: Group) -> list[Shown]:
    """A row for a reader, in full: each turn of the prompt, then each response with what is known
    of it.
    """
    found = [_turn(turn, "") for turn in group.prompt]
    names = (
        response_names(group)
        if len(group.responses) > 1
        else [["assistant" if group.prompt else "text"]]
    )
    for (name, *known), response in zip(names, group.responses, strict=False):
        known += facts(response)
        if response.messages is None:
            found.append(Shown(name, response.text, known))
            continue
        turns = [
            _turn(turn, name if len(group.responses) > 1 else "") for turn in response.messages
        ]
        found += [*turns[:-1], turns[-1]._replace(facts=known)]
    return found


def _turn(turn: Message, name: str) -> Shown:
    """name: of the response that the turn belongs to, if there are several."""
    who = name if name and turn["role"] == "assistant" else turn["role"]
    train = turn.get("train", True) if turn["role"] == "assistant" else True
    how = " (not learned)" if not train else "" if train is True else f" (weight {train:g})"
    return Shown(who + how, said([turn]), [])


def response_names(group: Group) -> list[list[str]]:
    """The name of each response with what it is to the others: `better` by how much, or its
    rank.
    """
    pairs = resolved_pairs(group)
    if len(group.responses) == 2 and len(pairs) == 1:
        pair = pairs[0]
        better = ["better"]
        if pair.margin is not None:
            better.append(
                f"margin {pair.margin:g}"
                if isinstance(pair.margin, float | int)
                else f"margin {pair.margin}"
            )
        if pair.p != 1:
            better.append(f"p {pair.p:g}")
        return [better, ["worse"]] if pair.better == 0 else [["worse"], better]
    if len(group.responses) == 1:
        return [["response"]]
    names = []
    for number, response in enumerate(group.responses, 1):
        names.append(
            [f"response {number}"]
            + ([f"rank {response.rank:g}"] if response.rank is not None else [])
        )
    return names


def facts(response: Response) -> list[str]:
    """The scores and the label of a response."""
    found = [f"{name} {score}" for name, score in response.scores.items()]
    return (
        found
        if response.label is None
        else [*found, "label good" if response.label else "label bad"]
    )


def shortened(text: str) -> str:
    """The beginning of a text on one line, without characters that a terminal would obey; '(empty)'
    if it is blank.
    """
    words = " ".join(text[: 4 * WIDTH].split())
    plain = "".join(character if character.isprintable() else "?" for character in words)
    cut = len(plain) > WIDTH or len(text) > 4 * WIDTH
    return (f"{plain[:WIDTH].rstrip()}..." if cut else plain) or "(empty)"
