"""Equal and nearly equal texts, by MinHash (Broder 1997) and locality-sensitive hashing.

Two texts are equal if they differ at most in case, white space and how they are typed
(`normalized`). They are nearly equal if the Jaccard similarity of their sets of five characters in
a row is at least a threshold, and if they have the same numbers: `2 + 3 = ?` does not repeat
`2 + 4 = ?`. Rows are nearly equal if their prompts are, and each response and the one in the same
place. Signatures (by rensa) only propose pairs, and the likeliest of each text are then compared
exactly: nothing is reported that is not so.
A pair at 0.8 is missed in about 1 of 400 cases, also among rows with a long part in common.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from typing import Any, Literal, NamedTuple

from alignkit.data.group import sha256_of
from alignkit.evaluation.answers import normalized
from alignkit_plugins.data_tools.files import Row
from alignkit_plugins.text.rows import turns_of_response, turns_text

# A pair becomes a candidate if all values of one band are equal: in 1 - (1 - s^6)^20 of cases at
# similarity s.
BANDS, PER_BAND, SEED = 20, 6, 49
VALUES = 512  # a signature says how similar candidates are to within 0.04
GRAM = 5  # characters
THRESHOLD = 0.8  # similarity of near duplicates
MOST = 20_000  # characters of a text that are compared
PART = "\x1f"  # between the prompt and the responses of a row; no normalized text has it
ALMOST = 0.9999  # similarity at most of texts that are not equal, but have the same grams
ENDS = " .,:;!?'\""
MOST_ALIKE = 2048  # texts with the same band that are looked at
LIKELY = 32  # texts that are compared with one
COMMON = 5  # rows with the same answer; one that more give is no leak, such as a refusal
LEAST = 30  # characters of an answer, or of one turn of several, that can be a leak
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")

Kind = Literal["row", "prompt", "response"]
ROLES = {"prompt": "user", "response": "assistant"}


class Unit(NamedTuple):
    """A text of a row that is compared."""

    row: int
    text: str


class Match(NamedTuple):
    """A text, the one that it repeats, and how similar they are; 1 if they are equal."""

    unit: Unit
    other: Unit
    similarity: float


def units_of(rows: Iterable[Row], kind: Kind) -> list[Unit]:
    """The texts of some rows.

    row: all that it says. prompt: all of it without system messages, and each user turn.
    response: each response, and each assistant turn before it. Raw text is a response.
    """
    units = []
    for at, row in enumerate(rows):
        texts = _turns(row, kind)
        if kind == "row":
            texts = _whole(row)
        for text in texts:
            units.append(Unit(at, text))
    return units


def _whole(row: Row) -> Iterator[str]:
    parts = []
    for group in row.groups:
        for turns in (group.prompt, *map(turns_of_response, group.responses)):
            parts.append(normalized(turns_text(turns)))
        if group.tools:
            parts.append(sha256_of(group.tools))
    if row.groups:
        yield PART.join(parts)


def _turns(row: Row, kind: Kind) -> Iterator[str]:
    for group in row.groups:
        prompt = [turn for turn in group.prompt if turn["role"] != "system"]
        if kind == "prompt" and prompt:
            yield normalized(turns_text(prompt))
        for turns in (prompt, *map(turns_of_response, group.responses)):
            for turn in turns:
                text = normalized(turns_text([turn]))
                if turn["role"] == ROLES[kind] and len(text) >= LEAST:
                    yield text


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two normalized texts that are not equal; 0 if their numbers differ.

    Two rows are as similar as their least similar parts: a pair with the better and the worse
    response exchanged repeats nothing, and neither does another answer about the same long passage.
    """
    if _numbers(first) != _numbers(second):
        return 0.0
    parts, others = first.split(PART), second.split(PART)
    if len(parts) != len(others):
        return 0.0
    return min(ALMOST, *map(_alike, parts, others))


def _numbers(text: str) -> list[Decimal]:
    return sorted(Decimal(number.replace(",", "")) for number in _NUMBER.findall(text))


def _alike(first: str, second: str) -> float:
    """The similarity of two parts. Short ones have too few grams to differ in a mark at an end."""
    is_short = max(len(first), len(second)) < LEAST
    if first == second or (is_short and first.strip(ENDS) == second.strip(ENDS)):
        return 1.0
    one, other = _grams(first), _grams(second)
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


@lru_cache(maxsize=8)  # long texts take megabytes
def _grams(text: str) -> set[str]:
    text = text[:MOST]
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


@lru_cache(maxsize=1)
def _signature(text: str) -> tuple[list[int], Any]:
    """The bands of a text, each with its place, and the last byte of each value of its signature."""
    import numpy  # only here, so that commands start fast
    from rensa import RMinHash

    sketch = RMinHash(num_perm=VALUES, seed=SEED)
    sketch.update(list(_grams(text)))  # in any order
    digest = sketch.digest()
    bands = [hash((at, *digest[at : at + PER_BAND])) for at in range(0, BANDS * PER_BAND, PER_BAND)]
    return bands, numpy.array(digest, numpy.uint64).astype(numpy.uint8)


class Index:
    """Texts that find those that repeat them. threshold: of near duplicates; 0: only equal ones."""

    def __init__(self, threshold: float, units: Iterable[Unit] = ()):
        self.threshold = threshold
        self.first: dict[str, Unit] = {}
        self.signed: list[tuple[Unit, Any]] = []
        self.bands: defaultdict[int, list[int]] = defaultdict(list)
        for unit in units:
            self.add(unit)

    def add(self, unit: Unit) -> None:
        """Add a text, unless an equal one is there."""
        if unit.text in self.first:
            return
        self.first[unit.text] = unit
        if self.threshold:
            bands, values = _signature(unit.text)
            for band in bands:
                self.bands[band].append(len(self.signed))
            self.signed.append((unit, values))

    def match(self, unit: Unit) -> Match | None:
        """The text that equals another one, or that is nearly equal to it."""
        return next(self.matches(unit), None)

    def matches(self, unit: Unit) -> Iterator[Match]:
        """An equal text, or else those that are nearly equal, the likeliest first.

        Texts with a long part in common share a few bands with all others; then only those with
        the most similar signatures are compared.
        """
        if equal := self.first.get(unit.text):
            yield Match(unit, equal, 1.0)
        if equal or not self.bands:
            return
        bands, values = _signature(unit.text)
        places = {place for band in bands for place in self.bands.get(band, [])[-MOST_ALIKE:]}
        found = [self.signed[place] for place in sorted(places)]
        found.sort(key=lambda one: -(one[1] == values).sum())
        for other, _ in found[:LIKELY]:
            alike_by = similarity(other.text, unit.text)
            if alike_by >= self.threshold:
                yield Match(unit, other, alike_by)


def repeated(units: Iterable[Unit], threshold: float) -> list[Match]:
    """Texts that repeat an earlier one, which itself repeats none."""
    index, matches = Index(threshold), []
    for unit in units:
        match = index.match(unit)
        if match is None:
            index.add(unit)
        else:
            matches.append(match)
    return matches


def shared(units: Iterable[Unit], others: Iterable[Unit], threshold: float) -> list[Match]:
    """Texts that are in `others`, too, each with one of these."""
    index = Index(threshold, others)
    return list(filter(None, map(index.match, units)))


def leaks(
    training: Iterable[Row], held_out: Iterable[Row], kind: Kind, threshold: float
) -> list[Match]:
    """What training rows share with held-out rows.

    A response that more than COMMON training rows give is no leak.
    """
    units = units_of(training, kind)
    if kind == "response":
        copies = Counter(unit.text for unit in units)
        units = [unit for unit in units if copies[unit.text] <= COMMON]
    return shared(units, units_of(held_out, kind), threshold)


def alike(rows: Sequence[Any]) -> list[tuple[int, int]]:
    """The pairs of a file's rows, by their places, that share a long text, or nearly.

    It looks at all texts in a row, whatever a format makes of them. One that more than COMMON rows
    have, such as a refusal, joins none.
    """
    return _pairs_of(tuple(tuple(dict.fromkeys(_texts(row))) for row in rows))


@lru_cache(maxsize=4)  # several stages read one file
def _pairs_of(texts: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    copies = Counter(chain(*texts))
    index, pairs = Index(THRESHOLD), dict[tuple[int, int], None]()
    for at, row in enumerate(texts):
        for unit in (Unit(at, text) for text in row if copies[text] <= COMMON):
            for match in index.matches(unit):
                if match.other.row != at:
                    pairs[match.other.row, at] = None
            index.add(unit)
    return list(pairs)


def _texts(value: Any) -> Iterator[str]:
    """The long texts in plain data, normalized."""
    if isinstance(value, str):
        text = normalized(value)
        if len(text) >= LEAST:
            yield text
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)
