"""What counts: the labels that stand, disagreements, the final label of each item, and the rows
that recipes read.

The latest label of an annotator counts, unless it was undone, replaced by a skip, or its author
withdrew consent. An item that anyone flagged waits for adjudication. The final label is the
adjudicated one, else the gold one, else the majority's; the original labels stay.

A row is `{feedback: 1, item: {task, prompt, responses, ...}, votes: [{annotator, label, ...}],
final: {...}}`: labels are in the item's own order. Only an item with a gold label, or that was
adjudicated, has `final`, and then only that counts. Of a gold item, `gold` is true.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit_plugins.people.labels import Label, agrees, canonical, majority
from alignkit_plugins.people.store import Event, Store, Stored, event_of

COLUMNS = (
    "task",
    "prompt",
    "responses",
    "tools",
    "origins",
    "meta",
    "license",
    "batch",
)  # of an item, in a row
FACTS = ("annotator", "label", "created", "seconds")  # of a vote, in a row


@dataclass(frozen=True)
class Vote:
    """A label that stands, in the item's own order."""

    annotator: str
    label: Label
    created: str
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
        gold = self.stored.item.gold
        return (
            None
            if gold is None
            else dict(gold if self.adjudicated is None else self.adjudicated.label)
        )

    @property
    def settled(self) -> Label | None:
        """The label that replaces the votes."""
        return self.gold if self.adjudicated is None else self.adjudicated.label

    @property
    def final(self) -> Label | None:
        """The label to learn from; None if it waits, has no vote, or its votes are tied."""
        if self.waits:
            return None
        return self.settled or majority([vote.label for vote in self.votes])

    @property
    def disputed(self) -> bool:
        """Whether someone should adjudicate: it waits, or two annotators disagree."""
        first, *others = [vote.label for vote in self.votes] or [{}]
        return self.waits or (
            self.settled is None and any(agrees(label, first) is False for label in others)
        )

    @property
    def counts(self) -> bool:
        """Whether a recipe reads the item."""
        left_out = self.stored.retired or self.withdrawn or self.waits
        return not left_out and bool(self.votes or self.settled)

    def row(self) -> dict[str, Any]:
        """The row of the item: no empty fields, nothing that only the store needs."""
        item = vars(self.stored.item)
        columns = {
            name: item[name] for name in COLUMNS if item[name] or name in ("prompt", "responses")
        }
        if not any(self.stored.item.origins):
            columns.pop("origins", None)
        votes = []
        for vote in self.votes:
            facts = vars(vote)
            votes.append({name: facts[name] for name in FACTS if facts[name] is not None})
        row: dict[str, Any] = {"feedback": 1, "item": columns, "votes": votes}
        if self.settled is not None:
            row["final"] = self.settled
        if self.gold is not None:
            row["gold"] = True
        return row


def labeled(store: Store, items: Iterable[str] | None = None) -> list[Labeled]:
    """The items with everything that counts, in the order in which they were added; retired ones
    too. items: ids.
    """
    wanted = None if items is None else set(items)
    with store.transaction("DEFERRED"):
        found = {stored.item.id: Labeled(stored) for stored in store.items()}
        absent = withdrawn(store)
        events = effective(store, "label", "skip", "flag", "adjudicate")
    latest: dict[tuple[str, str], Event] = {}
    for event in events:
        entry = found[str(event.item)]
        if event.annotator in absent:
            continue
        if event.kind == "flag":
            entry.flags.append((event.annotator, event.payload["note"]))
        elif event.kind == "adjudicate":
            entry.adjudicated = _vote(event)
        else:
            latest[event.annotator, str(event.item)] = event
    for (annotator, item), event in sorted(latest.items()):
        if event.kind == "label":
            found[item].votes.append(_vote(event))
        else:
            found[item].skips.append((annotator, event.payload["reason"]))
    for entry in found.values():
        entry.withdrawn = entry.stored.item.author in absent
    return [entry for name, entry in found.items() if wanted is None or name in wanted]


def _vote(event: Event) -> Vote:
    return Vote(
        event.annotator, canonical(event.payload, event.order), event.created, event.seconds
    )


def effective(store: Store, *kinds: str) -> list[Event]:
    """The events of these kinds that were not undone, in order."""
    marks = ", ".join("?" * len(kinds))
    query = f"SELECT content FROM effective WHERE kind IN ({marks}) ORDER BY created, uuid"
    return [event_of(row) for row in store.rows(query, *kinds)]


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
    return {event.annotator: event.payload["granted"] for event in effective(store, "consent")}


def withdrawn(store: Store) -> set[str]:
    """The annotators who took their consent back: their labels count nowhere, and nobody learns
    from their prompts.
    """
    answers: dict[str, list[bool]] = defaultdict(list)
    for event in effective(store, "consent"):
        answers[event.annotator].append(event.payload["granted"])
    return {annotator for annotator, given in answers.items() if any(given) and not given[-1]}


def attributes(store: Store) -> dict[str, Mapping[str, str]]:
    """What the invitation of each annotator says of them, such as their degree."""
    return {event.annotator: event.payload["attributes"] for event in effective(store, "person")}


def store_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a store, numbered by the positions of their items. Reads it as it is now and
    leaves no trace.

    Without items that wait for adjudication, that have no label, that nobody is asked about any
    more, or whose author took the consent back.
    """
    with Store.open(path) as store:
        entries = labeled(store)
    for entry in entries:
        if entry.counts:
            yield entry.stored.position, entry.row()


def store_digest(path: Path) -> str:
    """SHA-256 of the rows that a recipe reads from a store."""
    digest = hashlib.sha256()
    for row in store_rows(path):
        digest.update(repr(row).encode())
    return digest.hexdigest()
