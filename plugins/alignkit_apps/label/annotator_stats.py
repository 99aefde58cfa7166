"""How good labels are: what annotators may know of their own, and what reviewers may know of everybody's."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from alignkit.evaluation.statistics import Share, clustered_share, share
from alignkit_apps.web.messages import visible
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.assignment import REPEAT_AFTER
from alignkit_plugins.people.effective_labels import Labeled, Vote, labeled
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import FLAGS, SIDES, Label, agrees, displayed
from alignkit_plugins.people.store import Store

OWN = 200  # labels on an annotator's page
LINE = 160  # characters of a prompt there
BINS = {"preferred_safe": "only the better one is safe", "both_safe": "both are safe", "both_unsafe": "both are unsafe"}
FEWEST = 20  # labels before habits are warned of
MOST_ALIKE = 0.8  # share of one and the same label


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


@dataclass(frozen=True)
class Own:
    """A label that its annotator may change. event: its uuid. prompt: the last turn, in one line. said: in words."""

    event: str
    prompt: str
    said: str


@dataclass
class AnnotatorStats:
    """An annotator's own figures. gold: the share of gold items that are right; None without one.

    labeled: the last labels, the newest first. older: how many more there are.
    """

    labels: int = 0
    gold: Share | None = None
    misses: list[Miss] = field(default_factory=list)
    labeled: list[Own] = field(default_factory=list)
    older: int = 0


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
    told = told_items(store, annotator)
    open_ones = [(vote, entry) for vote, entry in own if entry.stored.item.id not in told]
    found.labeled = [_own(vote, entry) for vote, entry in open_ones[:OWN]]
    found.older = len(open_ones) - len(found.labeled)
    return found


def told_items(store: Store, annotator: str) -> set[str]:
    """The gold items whose known answer the annotator may have seen. Events count: an undo makes nobody forget."""
    rows = store.rows(
        "SELECT DISTINCT e.item FROM events AS e JOIN items AS i ON i.id = e.item "
        "WHERE e.annotator = ?1 AND e.kind = 'label' AND i.gold IS NOT NULL AND ?2 <= "
        "(SELECT count(*) FROM events AS l WHERE l.annotator = ?1 AND l.kind = 'label' AND l.number > e.number)",
        annotator,
        REPEAT_AFTER,
    )
    return {row["item"] for row in rows}


def _own(vote: Vote, entry: Labeled) -> Own:
    item = entry.stored.item
    last = visible(" ".join(str(item.prompt[-1]["content"] or "").split())) if item.prompt else ""
    return Own(
        vote.uuid,
        last if len(last) <= LINE else f"{last[:LINE]}...",
        in_words(displayed(vote.label, vote.order)),
    )


def agreement_in_words(store: Store) -> str:
    """`Two people agree on 83% of 40 items.`; empty if no item has labels of two."""
    compared = [
        agrees(entry.stored.item.task, one.label, other.label)
        for entry in labeled(store)
        for one, other in combinations(entry.votes, 2)
    ]
    pairs = [same for same in compared if same is not None]  # None: two texts cannot be compared
    times = f"{len(pairs)} comparison{'s' * (len(pairs) != 1)}"
    return f"Two people agree in {100 * sum(pairs) / len(pairs):.0f}% of {times} of their labels." if pairs else ""


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
    for name, flags in zip(SIDES, label.get("flags", ()), strict=False):
        parts += [f"{name}: {', '.join(FLAGS[flag] for flag in flags)}"] if flags else []
    if "good" in label:
        parts.append("good" if label["good"] else "bad")
    parts += [visible(str(label[key])) for key in ("text", "note") if label.get(key)]
    return "; ".join(parts)


# All annotators, for reviewers


@dataclass
class Annotator:
    """What an annotator's labels look like. Shares have Wilson's interval; None without a case.

    gold: agreement with gold labels. others: with other annotators, per pair of labels. seconds: the median of a label.
    habit: a label that is most of all, as displayed; empty if none is.
    """

    name: str
    labels: int
    skips: int
    gold: Share | None
    others: Share | None
    seconds: float | None
    habit: str


@dataclass
class Quality:
    """All annotators. questions: how much they agree, as in `agreement`. disputes: items to adjudicate."""

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
    """gold: whether each label of a gold item is right. alike: with other annotators, by item."""

    gold: list[bool] = field(default_factory=list)
    alike: list[list[float]] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    skips: int = 0


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
    annotators = [_annotator(name, found) for name, found in sorted(counts.items())]
    gold = [right for each in counts.values() for right in each.gold]
    return Quality(
        annotators,
        agreement(entries),
        sum(one.labels for one in annotators),
        share(sum(gold), len(gold)),
        sum(entry.disputed for entry in entries),
    )


def _count(counts: _Counts, item: Item, vote: Vote, gold: Label | None) -> None:
    said = displayed(vote.label, vote.order)
    counts.said[", ".join(f"{value}" for key, value in sorted(said.items()) if key not in ("note", "text"))] += 1
    counts.seconds += [] if vote.seconds is None else [vote.seconds]
    right = None if gold is None else agrees(item.task, vote.label, gold)
    if right is not None:
        counts.gold.append(right)


def _annotator(name: str, counts: _Counts) -> Annotator:
    labels = counts.said.total()
    most, often = counts.said.most_common(1)[0] if counts.said else ("", 0)
    habit = most if labels >= FEWEST and often > MOST_ALIKE * labels else ""
    return Annotator(
        name,
        labels,
        counts.skips,
        gold=share(sum(counts.gold), len(counts.gold)),
        others=clustered_share(counts.alike),
        seconds=median(counts.seconds) if counts.seconds else None,
        habit=habit,
    )
