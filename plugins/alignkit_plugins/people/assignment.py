"""What an annotator labels next: leases, overlap, gold items, qualification, and the blind order of
the responses.

Everything is a function of what was labeled before, so no page has to remember anything.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from alignkit import seeds
from alignkit_plugins.people.labels import agrees, canonical, check_annotator
from alignkit_plugins.people.store import LATEST, Store, Stored, event_of, stored_of

LEASE = 600.0  # seconds for which nobody else gets the item
SEED = 0  # it decides the order of responses, and what comes next
GOLD_RATE = 0.05  # share of gold items
LEAST = 0.8  # share of a qualification's gold items that must be right

# Nobody judges a response of their own.
_UNSEEN = (
    "retired = 0 AND writer <> :me AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.item = "
    "items.id AND e.annotator = :me AND e.kind IN ('label', 'skip', 'flag'))"
)
_OTHERS = "SELECT count(*) FROM leases WHERE leases.item = items.id AND leases.annotator <> :me"
# Who settles an item labels it only once it is disputed, and nobody else does then.
_OPEN = (
    f"SELECT * FROM items WHERE labels < wanted AND gold IS NULL AND {_UNSEEN} AND labels + "
    f"({_OTHERS}) < wanted AND (coalesce(json_extract(content, '$.settled_by'), '') = '' OR "
    "(json_extract(content, '$.settled_by') = :me) = coalesce(json_extract(content, '$.disputed'), 1))"
)
_GOLD = f"SELECT * FROM items WHERE gold IS NOT NULL AND {_UNSEEN}"
_MINE = LATEST.format("annotator = :me")


@dataclass(frozen=True)
class Assignment:
    """An item for an annotator. order: order[position] is the index of the response to show there.

    A page must not show `stored.item.origins` or `.gold`.
    """

    stored: Stored
    order: tuple[int, ...]


@dataclass(frozen=True)
class Qualification:
    """How an annotator answered the first gold items, before the first item whose label counts."""

    asked: int
    answered: int
    right: int

    @property
    def passed(self) -> bool:
        """Whether the annotator may label what counts."""
        return not self.asked or (
            self.answered >= self.asked and self.right / self.answered >= LEAST
        )

    @property
    def failed(self) -> bool:
        """Whether the annotator labels nothing more."""
        return self.answered >= self.asked and not self.passed


def qualification(store: Store, annotator: str, asked: int) -> Qualification:
    """How far the annotator is with the first `asked` gold items. A skipped item is not right."""
    query = (
        f"SELECT gold, mine.* FROM ({_MINE}) AS mine JOIN items ON items.id = item "
        "WHERE gold IS NOT NULL AND retired = 0 ORDER BY time LIMIT :asked"
    )
    rows = store.rows(query, me=annotator, asked=asked)
    right = 0
    for row in rows:
        event = event_of(row)
        if event.kind == "label":
            label = canonical(event.payload, event.order)
            right += agrees(label, json.loads(row["gold"])) is not False
    return Qualification(asked, len(rows), right)


def next_item(store: Store, annotator: str, qualify: int = 0) -> Assignment | None:
    """The item that the annotator should label now, leased for ten minutes; None if nothing is
    left.

    An annotator who has an item keeps it, so reloading a page shows the same one. Two annotators
    get the same item only as far as its overlap allows. Who has not qualified gets gold items.
    Raises `BadLabel` for a name that is none.
    """
    check_annotator(annotator)
    exam = qualification(store, annotator, qualify)
    if exam.failed:
        return None
    time = store.clock().timestamp()
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE until <= ?", (time,))
        held = connection.execute(
            "SELECT items.* FROM leases JOIN items ON items.id = leases.item "
            "WHERE annotator = ? AND retired = 0 ORDER BY until DESC LIMIT 1",
            (annotator,),
        ).fetchone()
        if exam.passed:
            row = held or _chosen(store, annotator)
        else:
            row = held if held is not None and held["gold"] is not None else _gold(store, annotator)
        if row is None:
            return None
        connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row["id"], annotator, time + LEASE)
        )
    return assigned(stored_of(row), annotator)


def take(store: Store, annotator: str, item: str) -> Assignment:
    """Lease a certain item, as undo does: `next_item` returns it until it is labeled."""
    stored, until = store.item(item), store.clock().timestamp() + LEASE
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
        connection.execute("INSERT INTO leases VALUES (?, ?, ?)", (item, annotator, until))
    return assigned(stored, annotator)


def order_of(item: str, annotator: str, count: int) -> tuple[int, ...]:
    """The order in which the annotator sees the responses of an item."""
    numbers = [seeds.number(SEED, "order", item, annotator, index) for index in range(count)]
    return tuple(sorted(range(count), key=numbers.__getitem__))


def progress(store: Store, annotator: str) -> tuple[int, int]:
    """How many items the annotator labeled, and how many that and those that are left are; gold
    items count, so that nobody recognizes them.
    """
    live = f"SELECT 1 FROM ({_MINE}) JOIN items ON items.id = item WHERE retired = 0"
    mine = store.count(f"{live} AND kind = 'label'", me=annotator)
    left = store.count(_OPEN, me=annotator) + store.count(_GOLD, me=annotator)
    return mine, mine + left


def assigned(stored: Stored, annotator: str) -> Assignment:
    """An item as the annotator sees it."""
    return Assignment(stored, order_of(stored.item.id, annotator, len(stored.item.responses)))


def _chosen(store: Store, annotator: str) -> sqlite3.Row | None:
    """Now and then a gold item; else the first open one; then gold ones."""
    draw = seeds.number(SEED, "next", annotator, store.count(_MINE, me=annotator)) / 2**63
    gold = _gold(store, annotator) if draw < GOLD_RATE else None
    if gold is not None:
        return gold
    first = store.rows(f"{_OPEN} ORDER BY priority DESC, position LIMIT 1", me=annotator)
    return first[0] if first else _gold(store, annotator)


def _gold(store: Store, annotator: str) -> sqlite3.Row | None:
    """A gold item that the annotator has not seen; each annotator gets them in another order."""
    rows = store.rows(_GOLD, me=annotator)
    return min(rows, key=lambda row: seeds.number(SEED, "gold", annotator, row["id"]), default=None)
