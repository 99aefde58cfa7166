"""Equal and nearly equal texts among millions, by MinHash (Broder 1997) and locality-sensitive hashing.

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
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.data.describe import said
from alignkit.data.group import Group, Message, Response

# A pair becomes a candidate if all values of one band are equal: in 1 - (1 - s^6)^20 of cases at similarity s.
BANDS, PER_BAND, SEED = 20, 6, 49
GRAM = 5  # characters
MOST = 20_000  # characters of a text, in a row of each part, that are compared
PART = "\x1f"  # between the prompt and the responses of a row; white space, so that no normalized text has it
ALMOST = 0.9999  # similarity at most of texts that are not equal, but have the same grams
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphens, places for a break, byte order marks
ENDS = " .,:;!?'\""
LEAST = 30  # characters of an answer, or of one turn of several, that can be a leak: "Yes, please." is none
_NUMBER = re.compile(r"\d+")
_MIXERS = np.random.default_rng(SEED).integers(1, 2**63, PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Kind = Literal["row", "prompt", "response", "unread"]
KINDS: tuple[Kind, ...] = ("row", "prompt", "response", "unread")
Ints = NDArray[np.int64]


class Unit(NamedTuple):
    """A text of a row that is compared with those of the same kind. turn: its number in the conversation, from 1.

    unread: what is wrong with a row that no format reads.
    """

    kind: Kind
    turn: int
    text: str


def units_of(groups: Sequence[Group], kinds: Iterable[Kind] = KINDS) -> Iterator[Unit]:
    """The texts of a row. row: all that it says. prompt: all of it without system messages, and each user turn.

    response: each response, and each assistant turn before it. Raw text has no prompt, and is a response.
    """
    wanted = set(kinds)
    if "row" in wanted:
        yield Unit("row", 0, PART.join(normalized(text) for group in groups for text in _texts(group)))
    for group in groups:
        turns = [turn for turn in group.prompt if turn["role"] != "system"]
        if "prompt" in wanted and turns:
            yield Unit("prompt", 0, normalized(said(turns)))
        answers = [_turns(response) for response in group.responses]
        spoken = [*enumerate(turns, 1), *(pair for answer in answers for pair in enumerate(answer, len(turns) + 1))]
        for number, turn in spoken:
            kind: Kind = "prompt" if turn["role"] == "user" else "response"
            text = normalized(said([turn])) if kind in wanted and turn["role"] in ("user", "assistant") else ""
            if len(text) >= LEAST and not number <= len(turns) == 1:  # a prompt of one turn was there already
                yield Unit(kind, number, text)


def _texts(group: Group) -> Iterator[str]:
    yield said(group.prompt)
    yield from (said(_turns(response)) for response in group.responses)


def _turns(response: Response) -> Sequence[Message]:
    return response.messages or (Message(role="assistant", content=response.text),)


def normalized(text: str) -> str:
    """The text in lower case, with one blank for each white space, and without characters that nobody sees."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text.translate(UNSEEN))
    return " ".join(text.casefold().split())


COLUMNS = {"unit_row": "int64", "kind": "int8", "turn": "int32", "text": "large_string", "key": "int64"}
COLUMNS |= {f"band{number}": "int64" for number in range(BANDS)}


def table(rows: Iterable[tuple[int, Iterable[Unit]]]) -> dict[str, Any]:
    """COLUMNS of units: the row, kind and turn of each, its text, a hash of the text, and one of each band."""
    from rensa import RMinHash

    found: list[tuple[int, Unit]] = [(row, unit) for row, units in rows for unit in units]
    digests = np.empty((len(found), BANDS * PER_BAND), dtype=np.uint64)
    for at, (_, unit) in enumerate(found):
        # Not its functions for batches: their threads would not survive a fork.
        sketch = RMinHash(num_perm=BANDS * PER_BAND, seed=SEED)
        sketch.update(list(_grams(unit.text)))  # in any order
        digests[at] = sketch.digest()
    bands = (digests.reshape(-1, BANDS, PER_BAND) * _MIXERS).sum(axis=2).view(np.int64)
    return {
        "unit_row": [row for row, _ in found],
        "kind": [KINDS.index(unit.kind) for _, unit in found],
        "turn": [unit.turn for _, unit in found],
        "text": [PART.join(part[:MOST] for part in unit.text.split(PART)) for _, unit in found],
        "key": [key(unit.text) for _, unit in found],
        **{f"band{number}": bands[:, number] for number in range(BANDS)},
    }


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
    """Some units of an Arrow table with COLUMNS, in the order of their rows. at: their places in it."""

    table: Any
    at: Ints

    @classmethod
    def of(cls, table: Any, kind: Kind) -> Units:
        return cls(table, np.flatnonzero(table["kind"].to_numpy() == KINDS.index(kind)))

    def _column(self, name: str) -> Ints:
        values: Ints = self.table[name].to_numpy()[self.at]
        return values

    @cached_property
    def rows(self) -> Ints:
        return self._column("unit_row")

    @cached_property
    def turns(self) -> Ints:
        return self._column("turn")

    @cached_property
    def keys(self) -> Ints:
        return self._column("key")

    def band(self, number: int) -> Ints:
        return self._column(f"band{number}")

    def text(self, unit: int) -> str:
        return str(self.table["text"][int(self.at[unit])].as_py())

    def without(self, rows: Iterable[int]) -> Units:
        """The units of all other rows."""
        return Units(self.table, self.at[~np.isin(self.rows, np.fromiter(rows, dtype=np.int64))])

    def rare(self, most: int) -> Units:
        """The texts that occur at most this often."""
        _, which, counts = np.unique(self.keys, return_inverse=True, return_counts=True)
        return Units(self.table, self.at[counts[which] <= most])


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
        pairs = [_neighbors(units.band(number)[alive]) for number in range(BANDS)]
        # By the later unit: whether the earlier one is a repetition itself is known when it is its turn.
        for one, two in alive[_distinct(pairs, len(alive))].T.tolist():
            kept = found[one].other if one in found else one
            if two not in found and (like := similarity(units.text(kept), units.text(two))) >= threshold:
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
            band, theirs = units.band(number), others.band(number)
            first, backwards = _lookup(theirs, band), _lookup(theirs[::-1], band)
            at = np.flatnonzero(first >= 0)
            pairs += [np.stack([first[at], at]), np.stack([last - backwards[at], at])]
        for other, at in _distinct(pairs, last + 1).T.tolist():
            if at not in found and (like := similarity(units.text(at), others.text(other))) >= threshold:
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
