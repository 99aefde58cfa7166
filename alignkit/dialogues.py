"""Dialogues in raw text, found by the heuristic behind Gopher's dialogue data (Rae et al. 2021, arXiv:2112.11446).

A dialogue is a run of at least 6 paragraphs in which two speakers take turns: the odd paragraphs begin with one
prefix, the even ones with another, such as `Gopher: `, `Dr Smith - ` or `Q. `.

The paper does not define a prefix. Here it ends with one of the separators `: `, ` - ` and `. `, after at least one
other character, within the first line and the first 40 characters. Of the prefixes that all paragraphs of a speaker
share, the longest counts, so that `Dr. Ann: ` and `Dr. Ben: ` are two speakers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SEPARATOR = re.compile(r"(?<=.)(?=(: | - |\. ))")  # a lookahead, because two separators may overlap
MAX_PREFIX = 40  # characters


@dataclass(frozen=True)
class Dialogue:
    """Two speakers taking turns.

    start: number of the first paragraph, from 0. line: number of its first line, from 1. prefixes: of the first and
    the second speaker's paragraphs. turns: the paragraphs without their prefixes.
    """

    start: int
    line: int
    prefixes: tuple[str, str]
    turns: tuple[str, ...]


def find_dialogues(text: str, *, min_paragraphs: int = 6) -> list[Dialogue]:
    """All dialogues of a text in order, each as long as possible, without overlaps.

    Blank lines separate paragraphs. Raises `ValueError` if `min_paragraphs` is below 2.
    """
    if min_paragraphs < 2:
        raise ValueError(f"min_paragraphs must be at least 2, not {min_paragraphs}")
    paragraphs = list(_paragraphs(text))
    prefixes = [_prefixes(paragraph) for _, paragraph in paragraphs]
    dialogues: list[Dialogue] = []
    start = 0
    while start + min_paragraphs <= len(paragraphs):
        length, speakers = _run(prefixes, start)
        if length < min_paragraphs:
            start += 1
            continue
        run = paragraphs[start : start + length]
        turns = tuple(paragraph[len(speakers[i % 2]) :].strip() for i, (_, paragraph) in enumerate(run))
        dialogues.append(Dialogue(start, run[0][0], speakers, turns))
        start += length
    return dialogues


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Each paragraph with the number of its first line."""
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield start, "\n".join(lines).lstrip()
            lines = []


def _prefixes(paragraph: str) -> frozenset[str]:
    """All possible prefixes of a paragraph."""
    line = paragraph.split("\n", 1)[0]
    ends = (match.end(1) for match in SEPARATOR.finditer(line, 0, MAX_PREFIX))
    return frozenset(line[:end] for end in ends)


def _run(prefixes: list[frozenset[str]], start: int) -> tuple[int, tuple[str, str]]:
    """The number of paragraphs from `start` in which two speakers take turns, and the speakers' prefixes."""
    shared: list[frozenset[str]] = [frozenset(), frozenset()]
    length = 0
    while start + length < len(prefixes):
        speaker, candidates = length % 2, prefixes[start + length]
        remaining = candidates & shared[speaker] if length > 1 else candidates
        if not remaining or _longest(remaining) == _longest(shared[1 - speaker]):
            break
        shared[speaker] = remaining
        length += 1
    return length, (_longest(shared[0]), _longest(shared[1]))


def _longest(prefixes: frozenset[str]) -> str:
    return max(prefixes, key=len, default="")
