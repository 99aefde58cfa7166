"""How good the labels are: per annotator, against gold labels, against others, and signs of haste or habit."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from alignkit.evaluation.statistics import Share, clustered_share, share
from alignkit_apps.feedback.agreement_summary import agreement
from alignkit_apps.feedback.effective_labels import Labeled, Vote, labeled
from alignkit_apps.feedback.items import Item
from alignkit_apps.feedback.labels import Label, agrees, displayed
from alignkit_apps.feedback.store import Store

FEWEST = 20  # labels before habits are warned of
MOST_ALIKE = 0.8  # share of one and the same label


@dataclass
class Annotator:
    """What an annotator's labels look like. Shares have Wilson's interval; None without a case.

    gold: agreement with gold labels. others: with other annotators, per pair of labels. again: with themselves, when an
    item came again. left: how often the answer on the left is the better one; longer: how often the longer one is.
    seconds: the median on an item. habit: a label that is most of all, as displayed; empty if none is.
    """

    name: str
    labels: int
    skips: int
    gold: Share | None
    others: Share | None
    again: Share | None
    left: Share | None
    longer: Share | None
    seconds: float | None
    habit: str


@dataclass
class Quality:
    """All annotators. questions: how much they agree, as `agreed.agreement` says it. disputes: items to adjudicate."""

    annotators: list[Annotator] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    labels: int = 0
    gold: Share | None = None
    disputes: int = 0


@dataclass
class Latest:
    """The quality of a store, measured again only after a new event: intervals take seconds."""

    store: Store
    _measured: tuple[int, Quality] = (-1, Quality())
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def state(self) -> int:
        """A number that grows with every event."""
        return int(self.store.rows("SELECT coalesce(max(number), 0) AS n FROM events")[0]["n"])

    def quality(self) -> tuple[int, Quality]:
        """The state, and the quality at that time or later."""
        with self._lock:
            if self._measured[0] != (now := self.state()):
                self._measured = (now, quality(self.store))
            return self._measured


@dataclass
class _Counts:
    """Hits and cases by what is counted. alike: with other annotators, by item."""

    cases: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    alike: list[list[float]] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    skips: int = 0

    def share(self, name: str) -> Share | None:
        return share(sum(self.cases[name]), len(self.cases[name]))


def quality(store: Store) -> Quality:
    """The quality of all labels that count."""
    counts: dict[str, _Counts] = defaultdict(_Counts)
    entries = [entry for entry in labeled(store) if not entry.stored.retired]
    for entry in entries:
        item = entry.stored.item
        for vote in entry.votes:
            _count(counts[vote.annotator], item, vote, entry.gold)
        for name, _ in entry.skips:
            counts[name].skips += 1
        alike: dict[str, list[float]] = defaultdict(list)
        for one, other in combinations(entry.votes, 2):
            same = agrees(item.task, one.label, other.label)
            if same is not None:
                alike[one.annotator].append(same)
                alike[other.annotator].append(same)
        for name, cases in alike.items():
            counts[name].alike.append(cases)
        _count_again(counts, entry)
    annotators = [_annotator(name, found) for name, found in sorted(counts.items())]
    gold = [right for each in counts.values() for right in each.cases["gold"]]
    return Quality(
        annotators,
        agreement(entries),
        sum(one.labels for one in annotators),
        share(sum(gold), len(gold)),
        sum(entry.disputed for entry in entries),
    )


def _count(counts: _Counts, item: Item, vote: Vote, gold: Label | None) -> None:
    if vote.seconds is not None:
        counts.seconds.append(vote.seconds)
    counts.said[_in_words(displayed(vote.label, vote.order))] += 1
    if gold is not None:
        right = agrees(item.task, vote.label, gold)
        if right is not None:
            counts.cases["gold"].append(right)
    if "better" in vote.label:
        better = vote.label["better"]
        counts.cases["left"].append(vote.order[0] == better)
        lengths = [len(str(answer)) for answer in item.responses]
        if lengths[0] != lengths[1]:
            counts.cases["longer"].append(lengths[better] > lengths[1 - better])


def _count_again(counts: Mapping[str, _Counts], entry: Labeled) -> None:
    first = {vote.annotator: vote for vote in entry.votes}
    for vote in entry.again:
        same = (
            agrees(entry.stored.item.task, vote.label, first[vote.annotator].label) if vote.annotator in first else None
        )
        if same is not None:
            counts[vote.annotator].cases["again"].append(same)


def _annotator(name: str, counts: _Counts) -> Annotator:
    labels = counts.said.total()
    most, often = counts.said.most_common(1)[0] if counts.said else ("", 0)
    habit = most if labels >= FEWEST and often > MOST_ALIKE * labels else ""
    shares = {key: counts.share(key) for key in ("gold", "again", "left", "longer")}
    shares["others"] = clustered_share(counts.alike)
    seconds = median(counts.seconds) if counts.seconds else None
    return Annotator(name, labels, counts.skips, **shares, seconds=seconds, habit=habit)


def _in_words(label: Mapping[str, Any]) -> str:
    return ", ".join(f"{value}" for key, value in sorted(label.items()) if key not in ("note", "text"))
