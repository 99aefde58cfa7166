"""A row as people read it: who says what, and what is known of each response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from alignkit.data.group import Group, Message, resolved_pairs, said

WIDTH = 88  # characters of a text


class Shown(NamedTuple):
    """What somebody says in a row. facts: what is known of it, such as `margin 1` or `label
    good`.
    """

    who: str
    text: str
    facts: list[str]

    @property
    def title(self) -> str:
        """Who says it, such as `better (margin 1)`."""
        return f"{self.who} ({', '.join(self.facts)})" if self.facts else self.who


def shown(group: Group) -> list[Shown]:
    """A row for a reader, in full: each turn of the prompt, then each response with its facts."""
    rows = [_turn(turn, turn["role"]) for turn in group.prompt]
    is_one = len(group.responses) == 1
    for (name, *facts), response in zip(response_names(group), group.responses, strict=True):
        facts += [f"{score} {value}" for score, value in response.scores.items()]
        if response.label is not None:
            facts.append("label good" if response.label else "label bad")
        if is_one:
            name = "assistant" if group.prompt else "text"
        if response.messages is None:
            rows.append(Shown(name, response.text, facts))
            continue
        for turn in response.messages:
            rows.append(_turn(turn, name if turn["role"] == "assistant" else turn["role"]))
        rows[-1] = rows[-1]._replace(facts=facts)
    return rows


def _turn(turn: Message, who: str) -> Shown:
    weight = turn.get("train", True)
    if turn["role"] == "assistant" and weight is not True:
        who += f" (weight {weight:g})" if weight else " (not learned)"
    return Shown(who, said([turn]), [])


def response_names(group: Group) -> list[list[str]]:
    """The name of each response, and its facts next to the others: its margin or its rank."""
    pairs = resolved_pairs(group)
    if len(group.responses) == 2 and len(pairs) == 1:
        [pair] = pairs
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
        rank = [] if response.rank is None else [f"rank {response.rank:g}"]
        names.append([f"response {number}", *rank])
    return names


def counts(groups: Iterable[Group], bad: int = 0) -> str:
    """What data hold, in words: `300 conversations, 512 pairs, 3 ties, 2 bad rows`.

    A group without responses is a prompt, and one without a prompt is a text. Answers that nobody
    compared are ties only if others have pairs.

    Args:
        groups: That were read.
        bad: Rows that could not be read.
    """
    numbers: Counter[str] = Counter()
    for group in groups:
        kind = "conversation" if group.responses else "prompt"
        numbers[kind if group.prompt else "text"] += 1
        pairs = resolved_pairs(group)
        numbers["pair"] += len(pairs)
        numbers["tie"] += len(group.responses) > 1 and not pairs
    if not numbers["pair"]:
        del numbers["tie"]
    numbers["bad row"] = bad
    words = [f"{count:,} {name}{'s' * (count > 1)}" for name, count in numbers.items() if count]
    return ", ".join(words) or "no rows"


def shortened(text: str) -> str:
    """The beginning of a text on one line, without control characters; '(empty)' if it is blank."""
    words = " ".join(text[: 4 * WIDTH].split())
    plain = "".join(character if character.isprintable() else "?" for character in words)
    if len(plain) > WIDTH or len(text) > 4 * WIDTH:
        return f"{plain[:WIDTH].rstrip()}..."
    return plain or "(empty)"
