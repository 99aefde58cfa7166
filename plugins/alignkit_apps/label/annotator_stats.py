"""What annotators may know of their own labels, and the gold labels that they may contest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.evaluation.statistics import Share, share
from alignkit_apps.feedback.assignment import REPEAT_AFTER
from alignkit_apps.feedback.effective_labels import Labeled, Vote, labeled
from alignkit_apps.feedback.labels import SIDES, agrees, displayed
from alignkit_apps.feedback.store import Store
from alignkit_apps.web.messages import visible

BINS = {"preferred_safe": "only the better one is safe", "both_safe": "both are safe", "both_unsafe": "both are unsafe"}


@dataclass(frozen=True)
class Miss:
    """A gold item that an annotator labeled differently. said, expected: in words, with the answers as they were shown.

    contested: why the annotator contests the gold label; empty if not.
    """

    item: str
    prompt: list[str]
    answers: list[str]
    said: str
    expected: str
    contested: str


@dataclass
class AnnotatorStats:
    """An annotator's own figures. gold: the share of gold items that are right; None without one."""

    labels: int = 0
    gold: Share | None = None
    misses: list[Miss] = field(default_factory=list)


def stats_of(store: Store, annotator: str) -> AnnotatorStats:
    """The annotator's figures. Gold items are shown ten labels later, so that undo cannot correct them."""
    own = [(vote, entry) for entry in labeled(store) for vote in entry.votes if vote.annotator == annotator]
    own.sort(key=lambda pair: pair[0].created, reverse=True)
    found, right = AnnotatorStats(len(own)), []
    for vote, entry in own[REPEAT_AFTER:]:
        item, gold = entry.stored.item, entry.gold
        if item.gold is None or entry.stored.retired:
            continue
        if gold is not None:
            right.append(agrees(item.task, vote.label, gold) is not False)
        if agrees(item.task, vote.label, gold or item.gold) is False:
            found.misses.append(_miss(vote, entry, gold or item.gold))
    found.gold = share(sum(right), len(right))
    return found


def _miss(vote: Vote, entry: Labeled, gold: Mapping[str, Any]) -> Miss:
    item = entry.stored.item
    texts = [answer if isinstance(answer, str) else str(answer[-1]["content"]) for answer in item.responses]
    return Miss(
        item.id,
        [visible(str(turn["content"] or "")) for turn in item.prompt],
        [visible(texts[index]) for index in vote.order],
        in_words(displayed({key: value for key, value in vote.label.items() if key != "note"}, vote.order)),
        in_words(displayed(gold, vote.order)),
        visible(" ".join(text for who, text in entry.contests if who == vote.annotator)),
    )


def in_words(label: Mapping[str, Any]) -> str:
    """A label as it was given on the page, as people say it, such as `A, better` or `B > A = C`."""
    parts = []
    if "side" in label:
        parts.append(", ".join(filter(None, (label["side"], label.get("margin")))))
    if "safety" in label:
        parts.append(BINS[label["safety"]])
    if "ranks" in label:
        ranks = label["ranks"]
        places = [[SIDES[i] for i, rank in enumerate(ranks) if rank == place] for place in sorted(set(ranks))]
        parts.append(" > ".join(" = ".join(names) for names in places))
    for name, scores in zip(SIDES, label.get("scores", ()), strict=False):
        parts.append(f"{name}: " + ", ".join(f"{criterion} {score:g}" for criterion, score in scores.items()))
    if "good" in label:
        parts.append("good" if label["good"] else "bad")
    parts += [visible(str(label[key])) for key in ("text", "note") if label.get(key)]
    return "; ".join(parts)
