"""What an annotator labels next: leases, overlap, gold items, qualification, and the blind order of
the responses.

Everything is a function of what was labeled before, so no page has to remember anything.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from statistics import median

from alignkit import seeds
from alignkit_plugins.people import records
from alignkit_plugins.people.labels import agrees, canonical
from alignkit_plugins.people.records import Stored
from alignkit_plugins.people.store import Store

LEASE = 600.0  # seconds for which nobody else gets the item
IDLE = 300.0  # seconds on an item that count at most
RECENT = 20  # labels that decide the pace
SEED = 0  # of the order of responses, and of what comes next
GOLD_RATE = 0.05  # share of gold items
LEAST = 0.8  # of the gold items of a qualification, right

_UNSEEN = (
    "retired = 0 AND NOT EXISTS (SELECT 1 FROM current AS c WHERE c.annotator = :me AND c.item = "
    "items.id) AND NOT EXISTS (SELECT 1 FROM effective AS f WHERE f.item = items.id AND "
    "f.annotator = :me AND f.kind = 'flag')"
)
_FREE = (
    "labels + (SELECT count(*) FROM leases WHERE leases.item = items.id AND leases.annotator <> "
    ":me) < wanted"
)
_MINE = (
    f"SELECT count(*) AS n FROM items WHERE {_UNSEEN} AND (gold IS NOT NULL OR (labels < wanted "
    f"AND {_FREE}))"
)
_ANSWERS = (
    "SELECT items.*, e.kind, e.payload, e.display_order FROM items JOIN current AS c ON c.item = "
    "items.id AND c.annotator = ? JOIN events AS e ON e.uuid = c.uuid WHERE gold IS NOT NULL AND "
    "retired = 0 ORDER BY c.created LIMIT ?"
)


@dataclass(frozen=True)
class Assignment:
    """An item for an annotator. order: order[position] is the index of the response to show there.

    A page must not show `stored.item.origins` or `.gold`.
    """

    stored: Stored
    order: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """How far an annotator is.

    mine, skipped: items that the annotator labeled and skipped. total: those labeled, and those
    that are left for the annotator; gold items count, so that nobody recognizes them. pace: the
    median seconds of the annotator's last labels; None before the first one.
    """

    mine: int
    skipped: int
    total: int
    pace: float | None


@dataclass(frozen=True)
class Qualification:
    """How an annotator answered the first gold items, before the first item whose label counts."""

    asked: int
    answered: int
    right: int

    @property
    def passed(self) -> bool:
        """Whether the annotator may label what counts."""
        if self.asked == 0:
            return True
        return self.answered >= self.asked and self.right / self.answered >= LEAST

    @property
    def failed(self) -> bool:
        """Whether the annotator labels nothing more."""
        return self.answered >= self.asked and not self.passed


def qualification(store: Store, annotator: str, asked: int) -> Qualification:
    """How far the annotator is with the first `asked` gold items. A skipped item is not right."""
    right = 0
    rows = store.rows(_ANSWERS, annotator, asked)
    for row in rows:
        if row["kind"] == "label":
            said = canonical(json.loads(row["payload"]), json.loads(row["display_order"]))
            right += agrees(row["task"], said, json.loads(row["gold"])) is not False
    return Qualification(asked, len(rows), right)


def next_item(store: Store, annotator: str, qualify: int = 0) -> Assignment | None:
    """The item that the annotator should label now, leased for ten minutes; None if nothing is
    left.

    An annotator who has an item keeps it, so reloading a page shows the same one. Two annotators
    get the same item only as far as its overlap allows. Who has not qualified gets gold items.
    Raises `BadLabel` for a name that is none.
    """
    records.check_annotator(annotator)
    exam = qualification(store, annotator, qualify)
    if exam.failed:
        return None
    time = store.clock().timestamp()
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE until <= ?", (time,))
        row = _held(connection, annotator)
        if exam.passed:
            row = row or _chosen(connection, annotator)
        elif row is None or row["gold"] is None:
            row = _gold(connection, annotator)
        if row is None:
            return None
        connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row["id"], annotator, time + LEASE)
        )
    return _assigned(records.stored_of(row), annotator)


def assignment(store: Store, annotator: str, item: str) -> Assignment:
    """An item as this annotator sees it. Raises `BadLabel` if it is unknown."""
    return _assigned(store.item(item), annotator)


def take(store: Store, annotator: str, item: str) -> Assignment:
    """Lease a certain item, as undo does: `next_item` returns it until it is labeled."""
    taken = assignment(store, annotator, item)
    until = store.clock().timestamp() + LEASE
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
        connection.execute("INSERT INTO leases VALUES (?, ?, ?)", (item, annotator, until))
    return taken


def order_of(item: str, annotator: str, count: int) -> tuple[int, ...]:
    """The order in which the annotator sees the responses of an item."""
    numbers = [seeds.number(SEED, "order", item, annotator, index) for index in range(count)]
    return tuple(sorted(range(count), key=numbers.__getitem__))


def progress(store: Store, annotator: str) -> Progress:
    """How far an annotator is."""
    kinds = store.rows(
        "SELECT kind, count(*) AS n FROM current JOIN items ON items.id = item "
        "WHERE annotator = ? AND retired = 0 GROUP BY kind",
        annotator,
    )
    counts = {row["kind"]: row["n"] for row in kinds}
    mine = counts.get("label", 0)
    left = store.rows(_MINE, me=annotator)[0]["n"]
    recent = store.rows(
        "SELECT seconds FROM events WHERE annotator = ? AND kind = 'label' AND seconds IS NOT NULL "
        "ORDER BY created DESC LIMIT ?",
        annotator,
        RECENT,
    )
    seconds = [min(row["seconds"], IDLE) for row in recent]
    pace = median(seconds) if seconds else None
    return Progress(mine, counts.get("skip", 0), mine + left, pace)


def _assigned(stored: Stored, annotator: str) -> Assignment:
    return Assignment(stored, order_of(stored.item.id, annotator, len(stored.item.responses)))


def _held(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    query = (
        "SELECT items.* FROM leases JOIN items ON items.id = leases.item "
        "WHERE annotator = ? AND retired = 0 ORDER BY until DESC LIMIT 1"
    )
    return connection.execute(query, (annotator,)).fetchone()


def _chosen(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    """Now and then a gold item; else the first open one; then gold ones."""
    seen = connection.execute(
        "SELECT count(*) FROM current WHERE annotator = ?", (annotator,)
    ).fetchone()[0]
    draw = seeds.number(SEED, "next", annotator, seen) / 2**63
    gold = _gold(connection, annotator) if draw < GOLD_RATE else None
    return gold or _open(connection, annotator) or _gold(connection, annotator)


def _open(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    query = (
        f"SELECT * FROM items WHERE labels < wanted AND gold IS NULL AND {_UNSEEN} AND {_FREE} "
        "ORDER BY priority DESC, position LIMIT 1"
    )
    return connection.execute(query, {"me": annotator}).fetchone()


def _gold(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    """A gold item that the annotator has not seen; each annotator gets them in another order."""
    rows = connection.execute(
        f"SELECT * FROM items WHERE gold IS NOT NULL AND {_UNSEEN}", {"me": annotator}
    ).fetchall()
    return min(rows, key=lambda row: seeds.number(SEED, "gold", annotator, row["id"]), default=None)
