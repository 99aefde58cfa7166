"""Rows that are held out together: their conversations open with the same words, they nearly repeat
each other, or they share a column's value of their source.

A row lies where the hash of its key says, a number in [0, 1): `validation: 0.2` is the same as
`part: [0, 0.2]`. Adding rows moves only those that the new ones nearly repeat. No seed, stage or
template has a part in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from alignkit.contract.formats import text_of
from alignkit.data.group import Group, sha256_of, turns_of, user_turn
from alignkit.errors import DataError
from alignkit.evaluation.answers import normalized
from alignkit.host.plugins import plugins

MOST = 20_000  # rows in which near duplicates are looked for
FEW = 5  # rows that near duplicates may join in a small file
WORD = re.compile(r"\w+")
_INTEGER = re.compile(r"\s*(0|-?[1-9]\d{0,20})(?:\.0+)?\s*")  # 7 is also written as 7.0 and "7"


def prompt_key(group: Group, words: Callable[[str], str] = str.strip) -> str:
    """The same for prompts of equal words; raw text has no prompt and is identified by its text."""
    turns = turns_of(group.prompt, words)
    return sha256_of(turns or [text_of(response, str.strip) for response in group.responses])


def held_together(group: Group) -> tuple[str, Any] | None:
    """The column of its source's `group`, if that names one, and what the row has there. Raises
    DataError if it has nothing there.
    """
    column = group.origin.group if group.origin else None
    if column is None:
        return None
    value = group.meta.get(column)
    if value is None:
        raise DataError(
            f"{group.origin}: the row has no '{column}', by which 'group' holds rows together"
        )
    if isinstance(value, float | str) and (number := _INTEGER.fullmatch(str(value))):
        value = int(number[1])
    return column, value.strip() if isinstance(value, str) else value


def loose_key(group: Group) -> str:
    """The same for prompts that say the same (`normalized`): an answer to one tells that to the
    other. Their system turns, which may have a date, do not count next to others.
    """
    turns = tuple(turn for turn in group.prompt if turn["role"] != "system")
    return prompt_key(replace(group, prompt=turns or group.prompt), normalized)


def keys_of(rows: Sequence[tuple[Any, Sequence[Group]]]) -> dict[str, str]:
    """The key of each opening in files that share a split: what has the same key is on one side.

    rows: all of them, each as parsed and as groups. Rows are joined if they share an opening or
    if they nearly repeat each other, as the functions of the kind `alike` say. What joins more than
    a tenth of the rows, such as a form that all are written in, joins none. The key of all is the
    smallest, whatever the order of the rows.
    """
    alone = [set[Any]().union(*map(openings, groups)) for _, groups in rows]
    places = plain = connected(alone)
    if len(rows) <= MOST:
        joined = list(map(set, alone))
        raw = [row for row, _ in rows]
        for pair in chain.from_iterable(plugins().ask("alike", raw)):
            for place in pair:
                joined[place].add(pair)
        places = connected(joined)
    sizes = Counter(places)
    keys: dict[int, str] = {}
    for at, own in enumerate(alone):
        if not own:  # a row that this format cannot read joins others
            continue
        if sizes[places[at]] > max(FEW, len(rows) / 10):
            places[at] = plain[at]
        keys[places[at]] = min({*own, keys.get(places[at], max(own))})
    found = dict[str, str]()
    for place, own in zip(places, alone, strict=True):
        found |= dict.fromkeys(own, keys.get(place, ""))
    return found


def connected(shares: Iterable[Iterable[Any]]) -> list[int]:
    """The set that each thing belongs to, as the place of its first one. What shares anything is in
    one set.

    shares: what each thing may share with others.
    """
    first, sets = dict[Any, int](), list[int]()

    def find(place: int) -> int:
        while sets[place] != place:
            place = sets[place]
        return place

    for place, shared in enumerate(shares):
        sets.append(place)
        for each in shared:
            one, other = sorted(map(find, (place, first.setdefault(each, place))))
            sets[other] = one
    return list(map(find, sets))


def opening(group: Group) -> str:
    """What all turns and answers of a conversation share, in any file, and what must not be cut:
    what the user says first, or what the row asks (`Format.asks`); or what the row has in the
    column of its source's `group`.
    """
    shared = held_together(group)
    return _first_words(group) if shared is None else sha256_of(["group", *shared])


def openings(group: Group) -> set[str]:
    """What holds a group together with others: the column of its source's `group`, and its first
    words.
    """
    return {opening(group), _first_words(group)}


def _first_words(group: Group) -> str:
    first = next((turn for turn in group.prompt if turn["role"] == "user"), None)
    if asks := group.origin and group.origin.asks:
        first = user_turn(asks)
    opened = group if first is None else replace(group, prompt=(first,))
    return prompt_key(opened, lambda text: " ".join(WORD.findall(normalized(text))))


def fraction(key: str) -> float:
    """A key's number in [0, 1), which is a hash."""
    # What was a purpose and a seed: whoever had none keeps the same split.
    return int(sha256_of(["part", 0, key])[:13], 16) / 16**13
