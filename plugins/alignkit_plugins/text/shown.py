"""A row as people read it: who says what, and what is known of each response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from alignkit.data.group import Group, Message, resolved_pairs
from alignkit_plugins.text.rows import turns_of_response, turns_text

WIDTH = 88  # characters of a text
LABELS = {True: "good", False: "bad"}


class ReadableTurn(NamedTuple):
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


def readable_turns(group: Group) -> list[ReadableTurn]:
    """A row for a reader, in full: each turn of the prompt, then each response with its facts."""
    rows = list(map(_turn, group.prompt))
    for (name, *facts), response in zip(response_names(group), group.responses, strict=True):
        for score, value in response.scores.items():
            facts.append(f"{score} {value}")
        if response.label is not None:
            facts.append(f"label {LABELS[response.label]}")
        if len(group.responses) == 1:
            name = "assistant" if group.prompt else "text"
        for turn in turns_of_response(response):
            rows.append(_turn(turn, name))
        rows[-1] = rows[-1]._replace(facts=facts)
    return rows


def _turn(turn: Message, assistant: str = "assistant") -> ReadableTurn:
    """A turn. assistant: what the assistant is called."""
    who, weight = str(turn["role"]), turn.get("train", True)
    if who == "assistant":
        who = assistant
        if not weight:
            who += " (not learned)"
        elif weight is not True:
            who += f" (weight {weight:g})"
    return ReadableTurn(who, turns_text([turn]), [])


def response_names(group: Group) -> list[list[str]]:
    """The name of each response, and its facts next to the others: its margin or its rank."""
    pairs = resolved_pairs(group)
    if len(group.responses) == 1:
        return [["response"]]
    if len(group.responses) == 2 and len(pairs) == 1:
        names, margin = [["worse"], ["worse"]], pairs[0].margin
        better = names[pairs[0].better] = ["better"]
        if isinstance(margin, str):
            better.append(f"margin {margin}")
        elif margin is not None:
            better.append(f"margin {margin:g}")
        if pairs[0].p != 1:
            better.append(f"p {pairs[0].p:g}")
        return names
    names = []
    for number, response in enumerate(group.responses, 1):
        names.append([f"response {number}"])
        if response.rank is not None:
            names[-1].append(f"rank {response.rank:g}")
    return names


def counts(groups: Iterable[Group], bad: int = 0) -> str:
    """What data hold, in words: `300 conversations, 512 pairs, 3 ties, 2 bad rows`.

    A group without responses is a prompt, and one without a prompt is a text. Answers that nobody
    compared are ties only if others have pairs.

    Args:
        groups: Those that were read.
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
