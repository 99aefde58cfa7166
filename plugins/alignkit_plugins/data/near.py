"""Equal and nearly equal texts, by MinHash (Broder 1997) and locality-sensitive hashing.

Two texts are equal if they differ at most in case and white space. They are nearly equal if the
Jaccard similarity of their sets of five characters in a row is at least a threshold, and if they
have the same numbers: `2 + 3 = ?` does not repeat `2 + 4 = ?`. Rows are nearly equal if their
prompts are, and each response and the one in the same place. Signatures (by rensa) only propose
pairs, and the likeliest of each text are then compared exactly: nothing is reported that is not so.
A pair at 0.8 is missed in about 1 of 400 cases, also among rows with a long part in common.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.data.group import Group, Message, Response, said

# A pair becomes a candidate if all values of one band are equal: in 1 - (1 - s^6)^20 of cases at
# similarity s.
BANDS, PER_BAND, SEED = 20, 6, 49
GRAM = 5  # characters
MOST = 20_000  # characters of a text that are compared
# Between the prompt and the responses of a row; white space, so that no normalized text has it
PART = "\x1f"
ALMOST = 0.9999  # similarity at most of texts that are not equal, but have the same grams
# Soft hyphens, places for a break, byte order marks
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
ENDS = " .,:;!?'\""
MOST_ALIKE = 2048  # texts with the same band that are looked at: the first and the last ones
LIKELY = 8  # texts that are compared with one
COMMON = 5  # rows with the same answer; one that more give is no leak, such as a refusal
# Characters of an answer, or of one turn of several, that can be a leak: "Yes, please." is none
LEAST = 30
_NUMBER = re.compile(r"\d+")
_MIXERS = np.random.default_rng(SEED).integers(1, 2**63, PER_BAND, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)

Kind = Literal["row", "prompt", "response"]
Ints = NDArray[np.int64]


class Unit(NamedTuple):
    """A text of a row that is compared with those of the same kind. turn: its number in the
    conversation, from 1.
    """

    turn: int
    text: str


def units_of(groups: Sequence[Group], kind: Kind) -> Iterator[Unit]:
    """The texts of a row. row: all that it says. prompt: all of it without system messages, and
    each user turn.

    response: each response, and each assistant turn before it. Raw text has no prompt, and is a
    response.
    """
    if kind == "row":
        texts: list[str] = []
        for group in groups:
            texts += [said(group.prompt), *(said(_turns(response)) for response in group.responses)]
        yield Unit(0, PART.join(map(normalized, texts)))
        return
    for group in groups:
        turns = [turn for turn in group.prompt if turn["role"] != "system"]
        if kind == "prompt" and turns:
            yield Unit(0, normalized(said(turns)))
        spoken = list(enumerate(turns, 1))
        for response in group.responses:
            spoken += enumerate(_turns(response), len(turns) + 1)
        for number, turn in spoken:
            whole = number <= len(turns) == 1  # a prompt of one turn, which was there already
            if turn["role"] == {"prompt": "user", "response": "assistant"}[kind] and not whole:
                text = normalized(said([turn]))
                if len(text) >= LEAST:
                    yield Unit(number, text)


def _turns(response: Response) -> Sequence[Message]:
    return response.messages or (Message(role="assistant", content=response.text),)


def normalized(text: str) -> str:
    """The text in lower case, with one blank for each white space, and without characters that
    nobody sees.
    """
    text = text if text.isascii() else unicodedata.normalize("NFKC", text.translate(UNSEEN))
    return " ".join(text.casefold().split())


def _grams(text: str) -> set[str]:
    text = text[:MOST]
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two normalized texts that are not equal: below 1; 0 if their
    numbers differ.

    Of rows, it is that of the parts that are least similar: a pair with the better and the worse
    response exchanged repeats nothing, and neither does another answer about the same long passage.
    """
    if sorted(_NUMBER.findall(first)) != sorted(_NUMBER.findall(second)) or first.count(
        PART
    ) != second.count(PART):
        return 0.0
    return min(ALMOST, *map(_alike, first.split(PART), second.split(PART)))


def _alike(first: str, second: str) -> float:
    """The similarity of two parts. Short ones have too few grams to differ in a mark at an end."""
    if first == second or (
        max(len(first), len(second)) < LEAST and first.strip(ENDS) == second.strip(ENDS)
    ):
        return 1.0
    one, other = _grams(first), _grams(second)
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Units:
    """Texts of rows. rows, turns: where each is from. bands: (texts, BANDS), of signatures."""

    rows: Ints
    turns: Ints
    texts: list[str]
    bands: Ints

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Sequence[Group]]], kind: Kind) -> Units:
        """The texts of some rows, each with its number and its groups."""
        return cls.made([(row, unit) for row, groups in rows for unit in units_of(groups, kind)])

    @classmethod
    def made(cls, found: Sequence[tuple[int, Unit]]) -> Units:
        """Texts with their signatures."""
        from rensa import RMinHash

        digests = np.empty((len(found), BANDS * PER_BAND), dtype=np.uint64)
        for at, (_, unit) in enumerate(found):
            sketch = RMinHash(num_perm=BANDS * PER_BAND, seed=SEED)
            sketch.update(list(_grams(unit.text)))  # in any order
            digests[at] = sketch.digest()
        return cls(
            rows=np.array([row for row, _ in found], dtype=np.int64),
            turns=np.array([unit.turn for _, unit in found], dtype=np.int64),
            texts=[unit.text for _, unit in found],
            bands=(digests.reshape(-1, BANDS, PER_BAND) * _MIXERS).sum(axis=2).view(np.int64),
        )

    def rare(self, most: int) -> Units:
        """The texts that occur at most this often."""
        counts = Counter(self.texts)
        at = [place for place, text in enumerate(self.texts) if counts[text] <= most]
        texts = [self.texts[place] for place in at]
        return Units(self.rows[at], self.turns[at], texts, self.bands[at])

    def first_places(self) -> dict[str, int]:
        """Where each text occurs first."""
        first: dict[str, int] = {}
        for at, text in enumerate(self.texts):
            first.setdefault(text, at)
        return first


class Match(NamedTuple):
    """A unit, the one that it repeats, both by their numbers, and how similar they are; 1 if they
    are equal.
    """

    unit: int
    other: int
    similarity: float


def repeated(units: Units, threshold: float) -> list[Match]:
    """Units that repeat an earlier one, which itself repeats none. threshold: of near duplicates;
    0: only equal.
    """
    first = units.first_places()
    found = {
        at: Match(at, first[text], 1.0) for at, text in enumerate(units.texts) if first[text] != at
    }
    if threshold:
        alive = np.array([*first.values()], dtype=np.int64)  # the other copies need no comparison
        # Whether an earlier unit is a repetition itself is known when it is the turn of a later
        # one.
        for place, likely in _candidates(units.bands[alive], units.bands[alive], earlier=True):
            two = int(alive[place])
            for one in alive[likely].tolist():
                kept = found[one].other if one in found else one
                if (like := similarity(units.texts[kept], units.texts[two])) >= threshold:
                    found[two] = Match(two, kept, like)
                    break
    for at, match in found.items():
        if match.other in found:  # it equals one that is almost an earlier one
            found[at] = Match(at, found[match.other].other, found[match.other].similarity)
    return [found[at] for at in sorted(found)]


def _candidates(bands: Ints, others: Ints, *, earlier: bool = False) -> Iterator[tuple[int, Ints]]:
    """For each text with a band like another one's: its number, and those of the likeliest others,
    at most LIKELY.

    The more bands two texts share, the likelier they are alike. So texts with a long part in
    common, which share a few bands with all others, still find theirs. earlier: only others of a
    lower number; both are then the same texts.
    """
    orders = np.argsort(others, axis=0, kind="stable")
    starts, ends = np.empty_like(bands), np.empty_like(bands)
    for number in range(BANDS):
        ordered = others[orders[:, number], number]
        starts[:, number] = np.searchsorted(ordered, bands[:, number], "left")
        ends[:, number] = np.searchsorted(ordered, bands[:, number], "right")
    for at in np.flatnonzero((ends - starts > earlier).any(axis=1)).tolist():
        alike = []
        for number in np.flatnonzero(ends[at] - starts[at] > earlier).tolist():
            run = orders[starts[at, number] : ends[at, number], number]
            if earlier:
                run = run[: np.searchsorted(run, at)]
            alike += (
                [run]
                if len(run) <= MOST_ALIKE
                else [run[: MOST_ALIKE // 2], run[-MOST_ALIKE // 2 :]]
            )
        which, shares = np.unique(np.concatenate(alike), return_counts=True)
        if len(which):
            yield at, which[np.argsort(-shares, kind="stable")[:LIKELY]]


def shared(units: Units, others: Units, threshold: float) -> list[Match]:
    """Units that are in `others`, too, each with one of these."""
    first = others.first_places()
    found = {
        at: Match(at, first[text], 1.0) for at, text in enumerate(units.texts) if text in first
    }
    if threshold and others.texts:
        for at, likely in _candidates(units.bands, others.bands):
            for other in likely.tolist() if at not in found else ():
                if (like := similarity(units.texts[at], others.texts[other])) >= threshold:
                    found[at] = Match(at, other, like)
                    break
    return [found[at] for at in sorted(found)]
