"""Short answers compared with known ones, and "I don't know" seen by its words.

What the answer is, and when it is the known one, is defined in `alignkit.evaluation.answers`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from alignkit.evaluation import answers

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
# What follows is an answer
_HEDGES = "but|however|maybe|perhaps|probably|possibly|likely|guess|unless"
_SENTENCES = re.compile(r"(?<=[.!?])\s+|[;\n]")
_WORDS = re.compile(r"\w[\w']*")
# A sentence that says what is not so is no answer, and neither is one of nothing but the words
# below.
_DENIES = frozenset(
    _WORDS.findall(
        "not never nobody nothing none neither nor without unable unknown unclear insufficient "
        "cannot sorry afraid apologize unfortunately"
    )
)
_FILLERS = frozenset(
    _WORDS.findall(
        "i me my you your it this that there is are was were be can could would will should need "
        "let please thanks thank a an the and as because but since so if to well hmm honestly "
        "from on in of for with about based given provided only read know answer ask asked "
        "another other more text passage context paragraph article document story source "
        "information details evidence data question questions help"
    )
)


def matches(answer: str, known: Sequence[str], rule: Match, threshold: float) -> bool:
    """Whether an answer matches one of the known answers. threshold: the least F1 that matches, for
    `f1` only.
    """
    return any(_matches(answer, each, rule, threshold) for each in known if each.strip())


def _matches(answer: str, known: str, rule: Match, threshold: float) -> bool:
    if rule == "contains":
        return answers.mentions(answer, known)
    # A letter that is one of several words is no choice
    if rule == "f1" and not answers.choice_of(known):
        return f1(answers.words(answer), answers.words(known)) >= threshold
    return answers.same(answer, known)


def f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it occurs."""
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def says_unknown(answer: str) -> bool:
    """Whether an answer says that it does not know, and does not guess afterwards."""
    text = " ".join(_plain(answer).split())
    found = [match.end() for match in _phrases(text)]
    return bool(found) and re.search(rf"\b(?:{_HEDGES})\b", text[min(found) :]) is None


def abstains(answer: str, known: Sequence[str] = ()) -> bool:
    """Whether an answer says that it does not know, and nothing else. known: answers that must not
    stand next to that.

    Every other sentence must say what is not so, or consist of words about the text and the
    question.
    """
    if not says_unknown(answer):
        return False
    parts = list(_parts(answer))
    return not any(map(_answers, parts)) and not matches(" ; ".join(parts), known, "contains", 1.0)


def _parts(answer: str) -> Iterator[str]:
    """The sentences without a phrase, and the words before "I don't know"."""
    for sentence in _SENTENCES.split(_plain(answer)):
        text = " ".join(sentence.split())
        start = min((match.start() for match in _phrases(text)), default=None)
        if start is None:
            yield text
        elif text[start:].startswith(("i ", "i'")):
            yield text[:start]  # of "Paris, I don't know", but not of "who owns it is not stated"


def _answers(part: str) -> bool:
    """Whether a part of a text next to an abstention may be an answer."""
    words = _WORDS.findall(part)
    denies = any(word in _DENIES or word.endswith("n't") for word in words)
    return not denies and any(word not in _FILLERS for word in words)


def _phrases(text: str) -> list[re.Match[str]]:
    """Where a text of `_plain` says that it does not know, by whole words."""
    return list(re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, PHRASES))})(?!\w)", text))


def _plain(text: str) -> str:
    return answers.typed(answers.unmarked(text)).lower()
