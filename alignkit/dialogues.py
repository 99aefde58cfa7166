"""Dialogues in raw text, by the heuristic that made Gopher's dialogue data (Rae et al. 2021, arXiv:2112.11446).

A dialogue is a run of at least 6 paragraphs whose even ones begin with one prefix and whose odd ones begin with
another: `Gopher: `, `Dr Smith - `, `Q. `. So two speakers take turns without a gap, and nobody else speaks.

The paper leaves open what a prefix is. Here it ends, within the first line and the first 40 characters, in one of the
separators `: `, ` - ` and `. `, after at least one other character; of all prefixes that a speaker's paragraphs share
the longest counts, so that `Dr. Ann: ` and `Dr. Ben: ` are two speakers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SEPARATOR = re.compile(r"(?<=.)(?=(: | - |\. ))")  # looks ahead, as two separators may overlap
LONGEST = 40


@dataclass(frozen=True)
class Dialogue:
    """Two speakers taking turns.

    start: the paragraph it begins with, counted from 0. line: the line that one begins at, from 1. prefixes: how the
    first and the second speaker's paragraphs begin. turns: the paragraphs without them.
    """

    start: int
    line: int
    prefixes: tuple[str, str]
    turns: tuple[str, ...]


def find_dialogues(text: str, *, min_paragraphs: int = 6) -> list[Dialogue]:
    """All dialogues of a text, as long as they go on, in their order; no paragraph is in two of them.

    Lines that are empty or white space part paragraphs.
    """
    if min_paragraphs < 2:
        raise ValueError(f"a dialogue has at least 2 paragraphs, not {min_paragraphs}")
    parts = list(_paragraphs(text))
    prefixes = [_prefixes(words) for _, words in parts]
    found: list[Dialogue] = []
    start = 0
    while start + min_paragraphs <= len(parts):
        length, speakers = _run(prefixes, start)
        if length < min_paragraphs:
            start += 1
            continue
        said = parts[start : start + length]
        turns = tuple(words[len(speakers[i % 2]) :].strip() for i, (_, words) in enumerate(said))
        found.append(Dialogue(start, said[0][0], speakers, turns))
        start += length
    return found


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Each paragraph, with the number of its first line."""
    start, held = 0, list[str]()
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if held else number
            held.append(line)
        elif held:
            yield start, "\n".join(held).lstrip()
            held = []


def _prefixes(paragraph: str) -> frozenset[str]:
    line = paragraph.split("\n", 1)[0]
    ends = (match.end(1) for match in SEPARATOR.finditer(line, 0, LONGEST))
    return frozenset(line[:end] for end in ends)


def _run(prefixes: list[frozenset[str]], start: int) -> tuple[int, tuple[str, str]]:
    """How many paragraphs from `start` on are two speakers' turns, and how these begin."""
    shared: list[frozenset[str]] = [frozenset(), frozenset()]
    length = 0
    while start + length < len(prefixes):
        speaker, found = length % 2, prefixes[start + length]
        kept = found & shared[speaker] if length > 1 else found
        if not kept or _longest(kept) == _longest(shared[1 - speaker]):
            break
        shared[speaker] = kept
        length += 1
    return length, (_longest(shared[0]), _longest(shared[1]))


def _longest(prefixes: frozenset[str]) -> str:
    return max(prefixes, key=len, default="")
