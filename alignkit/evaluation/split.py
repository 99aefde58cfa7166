"""Rows that are held out together: their prompts say the same, continue each other, or share a
column's value of their source.

A row is on the side that its key chooses, by a hash, so that adding rows does not move the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from alignkit.contract.formats import text_of
from alignkit.data.group import Group, sha256_of, turns_of
from alignkit.errors import DataError
from alignkit.evaluation.answers import normalized

WORD = re.compile(r"\w+")
_INTEGER = re.compile(r"\s*(0|-?[1-9]\d{0,20})(?:\.0+)?\s*")  # 7 is also written as 7.0 and "7"


def prompt_key(group: Group, words: Callable[[str], str] = str.strip) -> str:
    """The same for prompts of equal words; raw text has no prompt and is identified by its text."""
    turns = turns_of(group.prompt, words)
    return sha256_of(turns or [text_of(response, str.strip) for response in group.responses])


def _unit(group: Group) -> str:
    """What must not be cut: the prompt, or what the row has in the column of its source's
    `group`.
    """
    shared = held_together(group)
    return prompt_key(group) if shared is None else sha256_of(["group", *shared])


def held_together(group: Group) -> tuple[str, Any] | None:
    """The column of its source's `group`, if that names one, and what the row has there. Raises
    DataError if it has nothing there.
    """
    column = group.origin.group if group.origin else None
    if column is None:
        return None
    if group.meta.get(column) is None:
        raise DataError(
            f"{group.origin}: the row has no '{column}', by which 'group' holds rows together"
        )
    value = group.meta[column]
    if isinstance(value, float | str) and (number := _INTEGER.fullmatch(str(value))):
        value = int(number[1])
    return column, value.strip() if isinstance(value, str) else value


def loose_key(group: Group) -> str:
    """The same for prompts that say the same (`normalized`): an answer to one tells that to the
    other. Their system turns, which may have a date, do not count next to others.
    """
    turns = tuple(turn for turn in group.prompt if turn["role"] != "system")
    return prompt_key(replace(group, prompt=turns or group.prompt), normalized)


def sides(groups: Sequence[Group]) -> list[str]:
    """The key of each group: groups with the same key are on one side.

    A key is that of the prompt, or of the source's column. Keys are joined if groups share a
    prompt, come from one row, or continue each other: a prompt is then the beginning of another
    one. The key of all is the smallest, whatever the order of the rows.
    """
    units, prompts = list(map(_unit, groups)), list(map(loose_key, groups))
    known, shares = set(prompts), list[set[str]]()
    for group, *keys in zip(groups, units, prompts, strict=True):
        shares.append(set(keys))
        if group.origin is not None:
            shares[-1].add(f"{group.origin.source}:{group.origin.row}")
        for end in range(1, len(group.prompt) - 1):
            shares[-1] |= known & {loose_key(replace(group, prompt=group.prompt[:end]))}
    places = connected(shares)
    smallest = dict(sorted(zip(places, units, strict=True), reverse=True))
    return list(map(smallest.__getitem__, places))


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
    """What all turns and answers of a conversation share, in any file: what the user says first;
    see `_unit`.
    """
    if group.origin and group.origin.group:
        return _unit(group)
    first = next((turn for turn in group.prompt if turn["role"] == "user"), None)
    first_words = group if first is None else replace(group, prompt=(first,))
    return prompt_key(first_words, lambda text: " ".join(WORD.findall(normalized(text))))


def fraction(purpose: str, key: str) -> float:
    """A key's number in [0, 1), which is a hash."""
    # The 0 was a seed: whoever had none keeps the same split.
    return int(sha256_of([purpose, 0, key])[:13], 16) / 16**13
