"""Equal and nearly equal texts, by MinHash (Broder 1997) and locality-sensitive hashing.

Two texts are equal if they differ at most in case and white space. They are nearly equal if the Jaccard similarity of
their sets of five characters in a row is at least a threshold, and if they have the same numbers: `2 + 3 = ?` does not
repeat `2 + 4 = ?`. Rows are nearly equal if their prompts are, and each response and the one in the same place.
Signatures (by rensa) only propose pairs, and every pair is then compared exactly: nothing is reported that is not so. A
pair at 0.8 is missed in about 1 of 400 cases.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.data.describe import said
from alignkit.data.group import Group, Message, Response

# A pair becomes a candidate if all values of one band are equal: in 1 - (1 - s^6)^20 of cases at similarity s.
BANDS, PER_BAND, SEED = 20, 6, 49
GRAM = 5  # characters
MOST = 20_000  # characters of a text that are compared
PART = "\x1f"  # between the prompt and the responses of a row; white space, so that no normalized text has it
ALMOST = 0.9999  # similarity at most of texts that are not equal, but have the same grams
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphens, places for a break, byte order marks
ENDS = " .,:;!?'\""
COMMON = 5  # rows with the same answer; one that more give is no leak, such as a refusal
LEAST = 30  # characters of an answer, or of one turn of several, that can be a leak: "Yes, please." is none
_NUMBER = re.compile(r"\d+")
_MIXERS = np.random.default_rng(SEED).integers(1, 2**63, PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Kind = Literal["row", "prompt", "response"]
Ints = NDArray[np.int64]


class Unit(NamedTuple):
    """A text of a row that is compared with those of the same kind. turn: its number in the conversation, from 1."""

    turn: int
    text: str


def units_of(groups: Sequence[Group], kind: Kind) -> Iterator[Unit]:
    """The texts of a row. row: all that it says. prompt: all of it without system messages, and each user turn.

    response: each response, and each assistant turn before it. Raw text has no prompt, and is a response.
    """
    if kind == "row":
        texts = [normalized(text) for group in groups for text in _texts(group)]
        yield Unit(0, PART.join(texts))
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


def _texts(group: Group) -> Iterator[str]:
    yield said(group.prompt)
    yield from (said(_turns(response)) for response in group.responses)


def _turns(response: Response) -> Sequence[Message]:
    return response.messages or (Message(role="assistant", content=response.text),)


def normalized(text: str) -> str:
    """The text in lower case, with one blank for each white space, and without characters that nobody sees."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text.translate(UNSEEN))
    return " ".join(text.casefold().split())


def key(text: str) -> int:
    """A number that equal texts share."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), signed=True)


def _grams(text: str) -> set[str]:
    text = text[:MOST]
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two normalized texts that are not equal: below 1; 0 if their numbers differ.

    Of rows, it is that of the parts that are least similar: a pair with the better and the worse response exchanged
    repeats nothing, and neither does another answer about the same long passage.
    """
    if sorted(_NUMBER.findall(first)) != sorted(_NUMBER.findall(second)) or first.count(PART) != second.count(PART):
        return 0.0
    return min(ALMOST, *map(_alike, first.split(PART), second.split(PART)))


def _alike(first: str, second: str) -> float:
    """The similarity of two parts. Short ones have too few grams to differ in a mark at an end."""
    if first == second or (max(len(first), len(second)) < LEAST and first.strip(ENDS) == second.strip(ENDS)):
        return 1.0
    one, other = _grams(first), _grams(second)
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Units:
    """Texts of rows. rows, turns: where each is from. keys: hashes of them. bands: (texts, BANDS), of signatures."""

    rows: Ints
    turns: Ints
    texts: list[str]
    keys: Ints
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
            keys=np.array([key(unit.text) for _, unit in found], dtype=np.int64),
            bands=(digests.reshape(-1, BANDS, PER_BAND) * _MIXERS).sum(axis=2).view(np.int64),
        )

    def rare(self, most: int) -> Units:
        """The texts that occur at most this often."""
        _, which, counts = np.unique(self.keys, return_inverse=True, return_counts=True)
        at = np.flatnonzero(counts[which] <= most)
        texts = [self.texts[place] for place in at]
        return Units(self.rows[at], self.turns[at], texts, self.keys[at], self.bands[at])


class Match(NamedTuple):
    """A unit, the one that it repeats, both by their numbers, and how similar they are; 1 if they are equal."""

    unit: int
    other: int
    similarity: float


def repeated(units: Units, threshold: float) -> list[Match]:
    """Units that repeat an earlier one, which itself repeats none. threshold: of near duplicates; 0: only equal."""
    _, first, which = np.unique(units.keys, return_index=True, return_inverse=True)
    original = first[which]
    found = {
        int(at): Match(int(at), int(original[at]), 1.0) for at in np.flatnonzero(original != np.arange(len(which)))
    }
    if threshold:
        alive = np.sort(first)  # the other copies need no comparison
        pairs = [_neighbors(units.bands[alive, number]) for number in range(BANDS)]
        # By the later unit: whether the earlier one is a repetition itself is known when it is its turn.
        for one, two in alive[_distinct(pairs, len(alive))].T.tolist():
            kept = found[one].other if one in found else one
            if two not in found and (like := similarity(units.texts[kept], units.texts[two])) >= threshold:
                found[two] = Match(two, kept, like)
    for at, match in found.items():
        if match.other in found:  # it equals one that is almost an earlier one
            found[at] = Match(at, found[match.other].other, found[match.other].similarity)
    return [found[at] for at in sorted(found)]


def _neighbors(values: Ints) -> Ints:
    """Pairs of places with equal values, (2, n): each with the first and with the previous one of its run."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    first = np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    later = np.flatnonzero(first != np.arange(len(ordered)))
    pairs = np.concatenate([[first[later], later], [later - 1, later]], axis=1)
    found: Ints = order[pairs]
    return found


def _distinct(pairs: Sequence[Ints], count: int) -> Ints:
    """All pairs, each once, in the order of their second number, then of the first. count: above all first numbers."""
    one, two = np.concatenate(pairs, axis=1)
    two, one = np.divmod(np.unique(two * count + one), count)
    return np.stack([one, two])


def shared(units: Units, others: Units, threshold: float) -> list[Match]:
    """Units that are in `others`, too, each with one of these."""
    place = _lookup(others.keys, units.keys)
    found = {int(at): Match(int(at), int(place[at]), 1.0) for at in np.flatnonzero(place >= 0)}
    if threshold and len(others.keys):
        last, pairs = len(others.keys) - 1, []
        for number in range(BANDS):  # with the first and with the last one of each band
            band, theirs = units.bands[:, number], others.bands[:, number]
            first, backwards = _lookup(theirs, band), _lookup(theirs[::-1], band)
            at = np.flatnonzero(first >= 0)
            pairs += [np.stack([first[at], at]), np.stack([last - backwards[at], at])]
        for other, at in _distinct(pairs, last + 1).T.tolist():
            if at not in found and (like := similarity(units.texts[at], others.texts[other])) >= threshold:
                found[at] = Match(at, other, like)
    return [found[at] for at in sorted(found)]


def _lookup(values: Ints, wanted: Ints) -> Ints:
    """The first place of each wanted number among values; -1 where there is none."""
    different, first = np.unique(values, return_index=True)
    if not len(different):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(different, wanted), len(different) - 1)
    found: Ints = np.where(different[at] == wanted, first[at], -1)
    return found
