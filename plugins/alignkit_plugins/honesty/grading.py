"""Short answers compared with known ones, and "I don't know" seen by its words.

Answers are compared as SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1): lowercase,
without ASCII punctuation, articles and extra white space. Unlike there, numbers keep their sign and point, and what
consists of nothing else is compared as it is. No installed library has this any more.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Match = Literal["exact", "f1", "contains"]
PHRASES = (
    "i don't know",
    "i do not know",
    "i'm not sure",
    "i am not sure",
    "not enough information",
    "cannot be answered",
    "can't be answered",
    "cannot be determined",
    "can't be determined",
    "unanswerable",
    "there is no answer",
    "does not say",
    "doesn't say",
    "does not mention",
    "doesn't mention",
    "is not mentioned",
    "isn't mentioned",
    "is not stated",
    "isn't stated",
)
_HEDGES = "but|however|maybe|perhaps|probably|possibly|likely|guess|unless"  # what follows is an answer
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OF_NUMBERS = r"(?<=\d)/\d|(?<![a-z.])\.\d|(?<!\w)-\.?\d"  # in 1/2, 3.5 and -5
_PUNCTUATION = re.compile(rf"(?!{_OF_NUMBERS})[{re.escape(string.punctuation)}]")


def normalized(text: str) -> str:
    """The text as SQuAD compares it, but 3.5 is not 35, -5 is not 5, and the answer A is kept."""
    plain = _plain(text)
    bare = _PUNCTUATION.sub("", plain)
    return " ".join((_ARTICLES.sub(" ", bare).split() or bare.split()) or plain.split())


def matches(answer: str, known: Sequence[str], rule: Match, threshold: float) -> bool:
    """Whether an answer matches one of the known answers. threshold: the least F1 that matches, for `f1` only."""
    ours = normalized(answer)
    return any(_matches(ours, theirs, rule, threshold) for each in known if (theirs := normalized(each)))


def _matches(ours: str, theirs: str, rule: Match, threshold: float) -> bool:
    if rule == "exact":
        return ours == theirs
    if rule == "contains":
        return f" {theirs} " in f" {ours} "
    return f1(ours.split(), theirs.split()) >= threshold


def f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it occurs."""
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def abstains(answer: str, phrases: Sequence[str] = PHRASES) -> bool:
    """Whether an answer says that it does not know, and does not guess nevertheless."""
    text = " ".join(_plain(answer).split())
    found = [end for phrase in phrases if (end := _end(text, " ".join(_plain(phrase).split()))) is not None]
    return bool(found) and re.search(rf"\b(?:{_HEDGES})\b", text[min(found) :]) is None


def _end(text: str, phrase: str) -> int | None:
    """Where a phrase of whole words first ends; None if it is not there."""
    found = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)
    return found.end() if found else None


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")
