"""What counts: the labels that stand, disagreements, and the final label of each item.

The latest label of an annotator counts, unless it was undone, replaced by a skip, or its author
withdrew consent. An item that anyone flagged waits for adjudication. The final label is the
adjudicated one, else the gold one, else the majority's; the original labels stay.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from alignkit_plugins.people.labels import FLAGS, Label, agrees, canonical, degree, level
from alignkit_plugins.people.records import Stored
from alignkit_plugins.people.store import Store


@dataclass(frozen=True)
class Vote:
    """A label that stands, in the item's own order."""

    annotator: str
    label: Label
    uuid: str
    created: str
    order: tuple[int, ...]
    guidelines: str = ""
    seconds: float | None = None


@dataclass
class Labeled:
    """An item with what people said about it.

    votes: one per annotator, in the order of their names. adjudicated: the label that settles it.
    flags: (annotator, text). skips: (annotator, reason). withdrawn: its author took the consent
    back.
    """

    stored: Stored
    votes: list[Vote] = field(default_factory=list)
    adjudicated: Vote | None = None
    flags: list[tuple[str, str]] = field(default_factory=list)
    skips: list[tuple[str, str]] = field(default_factory=list)
    withdrawn: bool = False

    @property
    def waits(self) -> bool:
        """Whether the item is flagged, and nobody has adjudicated it."""
        return self.adjudicated is None and bool(self.flags)

    @property
    def gold(self) -> Label | None:
        """The right label of a gold item: the adjudicated one, else its own."""
        if self.stored.item.gold is None:
            return None
        return dict(self.stored.item.gold) if self.adjudicated is None else self.adjudicated.label

    @property
    def final(self) -> Label | None:
        """The label to learn from; None if it waits, has no vote, or its votes are tied."""
        if self.adjudicated is not None:
            return self.adjudicated.label
        if self.waits:
            return None
        item = self.stored.item
        if item.gold is not None:
            return dict(item.gold)
        return majority(item.task, [vote.label for vote in self.votes])

    @property
    def disputed(self) -> bool:
        """Whether someone should adjudicate: it waits, or two annotators disagree."""
        item, labels = self.stored.item, [vote.label for vote in self.votes]
        different = any(agrees(item.task, label, labels[0]) is False for label in labels[1:])
        return self.waits or (different and self.adjudicated is None and item.gold is None)


def labeled(store: Store, items: Iterable[str] | None = None) -> list[Labeled]:
    """The items with everything that counts, in the order in which they were added; retired ones
    too. items: ids.
    """
    wanted = None if items is None else set(items)
    with store.snapshot():
        found = {
            s.item.id: Labeled(s) for s in store.items() if wanted is None or s.item.id in wanted
        }
        absent = withdrawn(store)
        for each in found.values():
            each.withdrawn = each.stored.item.author in absent
        standing = {row["uuid"] for row in store.rows("SELECT uuid FROM current")}
        rows = store.rows("SELECT * FROM effective WHERE item IS NOT NULL ORDER BY created, uuid")
    for row in rows:
        entry = found.get(row["item"])
        if entry is not None and row["annotator"] not in absent:
            _add(entry, row, row["uuid"] in standing)
    for entry in found.values():
        entry.votes.sort(key=lambda vote: vote.annotator)
    return list(found.values())


def disputes(store: Store, annotator: str = "") -> list[Labeled]:
    """The items that someone should adjudicate. annotator: without those that this person
    labeled.
    """
    waiting = [entry for entry in labeled(store) if entry.disputed and not entry.stored.retired]
    return [entry for entry in waiting if all(vote.annotator != annotator for vote in entry.votes)]


def consents(store: Store) -> dict[str, bool]:
    """Whether each annotator, when last asked, agreed that the labels are shared; absent if never
    asked.
    """
    return {annotator: answers[-1] for annotator, answers in _consents(store).items()}


def withdrawn(store: Store) -> set[str]:
    """The annotators who took their consent back: their labels count nowhere, and nobody learns
    from their prompts.
    """
    return {
        annotator
        for annotator, answers in _consents(store).items()
        if any(answers) and not answers[-1]
    }


def _consents(store: Store) -> dict[str, list[bool]]:
    query = "SELECT annotator, payload FROM effective WHERE kind = 'consent' ORDER BY created, uuid"
    granted: dict[str, list[bool]] = defaultdict(list)
    for row in store.rows(query):
        granted[row["annotator"]].append(json.loads(row["payload"])["granted"])
    return granted


def _add(entry: Labeled, row: Any, stands: bool) -> None:
    payload = json.loads(row["payload"])
    if row["kind"] == "flag":
        entry.flags.append((row["annotator"], payload["note"]))
    elif row["kind"] == "skip" and stands:
        entry.skips.append((row["annotator"], payload["reason"]))
    elif row["kind"] in ("label", "adjudicate"):
        order = tuple(json.loads(row["display_order"]))
        facts = {
            name: row[name] for name in ("annotator", "uuid", "created", "guidelines", "seconds")
        }
        vote = Vote(label=canonical(payload, order), order=order, **facts)
        if row["kind"] == "adjudicate":
            entry.adjudicated = vote
        elif stands:
            entry.votes.append(vote)


# The label of several people


def majority(task: str, labels: Sequence[Label]) -> Label | None:
    """One label from several; None if there is none, or they are tied.

    Pairs: the response that most prefer, and the mean of their degrees as margin; with as many on
    either side, the side of the mean. Rankings: by mean rank. Scores: means. Flags, thumbs: what
    most say. Texts: the only one, else None.
    """
    if len(labels) <= 1:
        return dict(labels[0]) if labels else None
    if task in ("pair", "safety"):
        return _majority_of_pairs(labels)
    if task == "thumb":
        good = sum(label["good"] for label in labels)
        return None if 2 * good == len(labels) else {"good": 2 * good > len(labels)}
    combined: Label = {}
    if task in ("ranking", "review"):
        ranks = zip(*(label["ranks"] for label in labels), strict=True)
        combined["ranks"] = places([mean(each) for each in ranks])
    if task in ("scores", "review"):
        combined["scores"] = []
        for each in zip(*(label["scores"] for label in labels), strict=True):
            combined["scores"].append(
                {name: mean([rated[name] for rated in each]) for name in each[0]}
            )
    if task == "review":
        combined["flags"] = []
        for sets in zip(*(label["flags"] for label in labels), strict=True):
            counts = Counter(chain.from_iterable(sets))
            combined["flags"].append([name for name in FLAGS if 2 * counts[name] > len(labels)])
    return combined or None


def review_columns(label: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a review says of each response besides its rank: a list for each criterion, and one of
    flags, if it does.
    """
    scores: Sequence[Mapping[str, float]] = label.get("scores", ())
    names = scores[0] if scores else ()
    columns: dict[str, list[Any]] = {name: [rated[name] for rated in scores] for name in names}
    return columns | ({"flags": label["flags"]} if "flags" in label else {})


def places(values: Sequence[float]) -> list[int]:
    """Ranks without gaps, 1 for the least value; equal values are tied."""
    different = sorted(set(values))
    return [1 + different.index(value) for value in values]


def mean(values: Sequence[float]) -> float:
    """The average of at least one value."""
    return sum(values) / len(values)


def _majority_of_pairs(labels: Sequence[Label]) -> Label | None:
    middle = mean([degree(label) for label in labels])
    lead = sum(1 if label["better"] else -1 for label in labels) or middle
    if not lead:
        return None
    better = int(lead > 0)
    combined: Label = {"better": better, "margin": level(max(0.0, middle if better else -middle))}
    bins = Counter(
        label["safety"] for label in labels if label["better"] == better and "safety" in label
    )
    if bins:
        combined["safety"] = max(sorted(bins), key=lambda name: bins[name])
    return combined
