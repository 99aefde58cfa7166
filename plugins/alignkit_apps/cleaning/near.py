"""Equal and nearly equal texts among millions, by MinHash (Broder 1997) and locality-sensitive hashing.

Two texts are equal if they differ at most in case and white space. They are nearly equal if the Jaccard similarity of
their sets of five characters in a row is at least a threshold, and if they have the same numbers: `2 + 3 = ?` does not
repeat `2 + 4 = ?`. Signatures (by rensa) only propose pairs, and every pair is then compared exactly: nothing is
reported that is not so. A pair at 0.8 is missed in about 1 of 400 cases.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.data.describe import said
from alignkit.data.group import Group, Message, Response

# A pair becomes a candidate if all values of one band are equal: in 1 - (1 - s^6)^20 of cases at similarity s.
BANDS, PER_BAND, SEED = 20, 6, 49
GRAM = 5  # characters
MOST = 20_000  # characters of a text that are compared
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
        yield Unit("row", 0, normalized("\n".join(text for group in groups for text in _texts(group))))
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
    """The text in lower case, with one blank for each white space."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
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
        "text": [unit.text[:MOST] for _, unit in found],
        "key": [_key(unit.text) for _, unit in found],
        **{f"band{number}": bands[:, number] for number in range(BANDS)},
    }


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), signed=True)


def _grams(text: str) -> set[str]:
    text = text[:MOST]
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two normalized texts; 0 if their numbers differ."""
    if sorted(_NUMBER.findall(first[:MOST])) != sorted(_NUMBER.findall(second[:MOST])):
        return 0.0
    one, other = _grams(first), _grams(second)
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Units:
    """Units of one kind, in the order of their rows. rows, turns, keys: of each. band(n): their hashes of a band.

    text(i): of one unit.
    """

    rows: Ints
    turns: Ints
    keys: Ints
    band: Callable[[int], Ints]
    text: Callable[[int], str]

    @classmethod
    def of(cls, columns: Mapping[str, Any], kind: Kind, text: Callable[[int], str] | None = None) -> Units:
        """From the columns of `table`, as lists or arrays. text: of a unit of any kind; default: its column's."""
        chosen = np.flatnonzero(np.asarray(columns["kind"]) == KINDS.index(kind))
        whole = text or (lambda at: columns["text"][at])

        def column(name: str) -> Ints:
            return np.asarray(columns[name], dtype=np.int64)[chosen]

        return cls(
            column("unit_row"),
            column("turn"),
            column("key"),
            lambda number: column(f"band{number}"),
            lambda at: whole(int(chosen[at])),
        )

    def without(self, rows: Ints) -> Units:
        """The units of all other rows."""
        return self._only(np.flatnonzero(~np.isin(self.rows, rows)))

    def rare(self, most: int) -> Units:
        """The texts that occur at most this often."""
        _, which, counts = np.unique(self.keys, return_inverse=True, return_counts=True)
        return self._only(np.flatnonzero(counts[which] <= most))

    def _only(self, at: Ints) -> Units:
        return Units(
            self.rows[at], self.turns[at], self.keys[at], lambda n: self.band(n)[at], lambda i: self.text(int(at[i]))
        )


class Match(NamedTuple):
    """A unit, the one that it repeats, both by their numbers, and how similar they are; 1 if they are equal."""

    unit: int
    other: int
    similarity: float


def repeated(units: Units, threshold: float | None) -> list[Match]:
    """Units that repeat an earlier one, which itself repeats none. threshold: of near duplicates; None: only equal."""
    _, first, which = np.unique(units.keys, return_index=True, return_inverse=True)
    original = first[which]
    found = {
        int(at): Match(int(at), int(original[at]), 1.0) for at in np.flatnonzero(original != np.arange(len(which)))
    }
    if threshold is not None:
        alive = np.sort(first)  # the other copies need no comparison
        pairs = [_neighbors(units.band(number)[alive]) for number in range(BANDS)]
        low, high = alive[_distinct(pairs, len(alive))]
        # By the later unit: whether the earlier one is a repetition itself is known when it is its turn.
        for one, two in zip(low.tolist(), high.tolist(), strict=True):
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


def shared(units: Units, others: Units, threshold: float | None) -> list[Match]:
    """Units that are in `others`, too, each with one of these."""
    place = _lookup(others.keys, units.keys)
    found = {int(at): Match(int(at), int(place[at]), 1.0) for at in np.flatnonzero(place >= 0)}
    if threshold is not None and len(others.keys):
        pairs = []
        for number in range(BANDS):
            band, theirs = units.band(number), others.band(number)
            backwards = len(theirs) - 1 - _lookup(theirs[::-1], band)
            for hit, there in ((_lookup(theirs, band), 0), (backwards, 1)):
                at = np.flatnonzero(hit >= 0) if there == 0 else np.flatnonzero(hit < len(theirs))
                pairs.append(np.stack([hit[at], at]))
        for other, at in _distinct(pairs, len(others.keys)).T.tolist():
            if at not in found and (like := similarity(units.text(at), others.text(other))) >= threshold:
                found[at] = Match(at, other, like)
    return [found[at] for at in sorted(found)]


def _lookup(values: Ints, wanted: Ints) -> Ints:
    """The first place of each wanted number among values; -1 where there is none."""
    different, first = np.unique(values, return_index=True)
    at = np.searchsorted(different, wanted)
    at[at == len(different)] = 0
    found: Ints = np.where(different[at] == wanted, first[at], -1) if len(different) else np.full(len(wanted), -1)
    return found
