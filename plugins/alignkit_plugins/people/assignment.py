"""What an annotator labels next: leases, overlap, gold and repeated items, and the blind order of the responses.

Everything is a function of the plan's seed and of what was labeled before, so no page has to remember anything.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from statistics import median

from alignkit import seeds
from alignkit_plugins.people import records
from alignkit_plugins.people.qualification import qualification
from alignkit_plugins.people.records import Plan, Stored
from alignkit_plugins.people.store import Store

LEASE = 600.0  # seconds for which nobody else gets the item
IDLE = 300.0  # seconds on an item that count at most
REPEAT_AFTER = 10  # items that an annotator labels before one comes again
RECENT = 20  # labels that decide the pace

_OPEN = "labels < wanted AND retired = 0 AND gold IS NULL"
_UNSEEN = "NOT EXISTS (SELECT 1 FROM current AS c WHERE c.annotator = :me AND c.item = items.id AND c.occasion = 0)"
_UNFLAGGED = (
    "NOT EXISTS (SELECT 1 FROM effective AS f WHERE f.item = items.id AND f.annotator = :me AND f.kind = 'flag')"
)
_FREE = "labels + (SELECT count(*) FROM leases WHERE leases.item = items.id AND leases.annotator <> :me) < wanted"


@dataclass(frozen=True)
class Assignment:
    """An item for an annotator. order: order[position] is the index of the response to show there.

    occasion: of the event. A page must not show `stored.item.origins` or `.gold`, nor whether `occasion` is 1.
    """

    stored: Stored
    order: tuple[int, ...]
    occasion: int = 0


@dataclass(frozen=True)
class Progress:
    """How far an annotator and the store are.

    mine, skipped: items of the annotator. done, total: labels that the store has, and those it wants, without gold.
    pace: the median seconds of the annotator's last labels; None before the first one.
    """

    mine: int
    skipped: int
    done: int
    total: int
    pace: float | None


def next_item(store: Store, annotator: str) -> Assignment | None:
    """The item that the annotator should label now, leased for ten minutes; None if nothing is left.

    An annotator who has an item keeps it, so reloading a page shows the same one. Two annotators get the same item
    only as far as its overlap allows. Who has not qualified gets gold items. Raises `BadLabel` for a name that is none.
    """
    records.check_annotator(annotator)
    plan, time = store.plan, store.clock().timestamp()
    exam = qualification(store, annotator)
    if exam.failed:
        return None
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE until <= ?", (time,))
        found = _held(connection, annotator)
        if not exam.passed:
            found = found if found and found["gold"] else _gold(connection, annotator, plan.seed)
        else:
            found = found or _chosen(connection, annotator, plan)
        if found is None:
            return None
        item, occasion = found["id"], found["occasion"]
        connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (item, annotator, occasion, time + LEASE)
        )
        stored = records.stored_of(found)
    return Assignment(stored, order_of(plan.seed, item, annotator, len(stored.item.responses), occasion), occasion)


def assignment(store: Store, annotator: str, item: str, occasion: int = 0) -> Assignment:
    """An item as this annotator sees it, such as the previous one after undo. Raises `BadLabel` if it is unknown."""
    stored = store.item(item)
    order = order_of(store.plan.seed, item, annotator, len(stored.item.responses), occasion)
    return Assignment(stored, order, occasion)


def take(store: Store, annotator: str, item: str, occasion: int = 0) -> Assignment:
    """Lease a certain item, as undo does: `next_item` returns it until it is labeled."""
    found = assignment(store, annotator, item, occasion)
    until = store.clock().timestamp() + LEASE
    with store.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (item, annotator, occasion, until))
    return found


def order_of(seed: int, item: str, annotator: str, count: int, occasion: int = 0) -> tuple[int, ...]:
    """The order in which the annotator sees the responses of an item; the reverse one if the item comes again."""
    numbers = [seeds.number(seed, "order", item, annotator, index) for index in range(count)]
    order = sorted(range(count), key=lambda index: numbers[index])
    return tuple(reversed(order) if occasion else order)


def progress(store: Store, annotator: str) -> Progress:
    """How far an annotator and the store are."""
    mine = store.rows(
        "SELECT kind, count(*) AS n FROM current WHERE annotator = ? AND occasion = 0 GROUP BY kind", annotator
    )
    counts = {row["kind"]: row["n"] for row in mine}
    total = store.rows(
        "SELECT coalesce(sum(min(labels, wanted)), 0) AS done, coalesce(sum(wanted), 0) AS total "
        "FROM items WHERE retired = 0 AND gold IS NULL"
    )[0]
    recent = store.rows(
        "SELECT seconds FROM events WHERE annotator = ? AND kind = 'label' AND seconds IS NOT NULL "
        "ORDER BY created DESC LIMIT ?",
        annotator,
        RECENT,
    )
    spent = [min(row["seconds"], IDLE) for row in recent]
    pace = median(spent) if spent else None
    return Progress(counts.get("label", 0), counts.get("skip", 0), total["done"], total["total"], pace)


def _held(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    query = (
        "SELECT items.*, occasion FROM leases JOIN items ON items.id = leases.item "
        "WHERE annotator = ? AND retired = 0 ORDER BY until DESC LIMIT 1"
    )
    return connection.execute(query, (annotator,)).fetchone()


def _chosen(connection: sqlite3.Connection, annotator: str, plan: Plan) -> sqlite3.Row | None:
    """A gold item or one that comes again, as often as the plan says; else the first open one; then gold ones."""
    seen = connection.execute("SELECT count(*) FROM current WHERE annotator = ?", (annotator,)).fetchone()[0]
    draw = seeds.number(plan.seed, "next", annotator, seen) / 2**63
    if draw < plan.gold_rate and (found := _gold(connection, annotator, plan.seed)):
        return found
    if draw >= 1 - plan.repeat_rate and (found := _again(connection, annotator)):
        return found
    return _open(connection, annotator) or _gold(connection, annotator, plan.seed)


def _open(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    query = (
        f"SELECT *, 0 AS occasion FROM items WHERE {_OPEN} AND {_UNSEEN} AND {_UNFLAGGED} AND {_FREE} "
        "ORDER BY priority DESC, position LIMIT 1"
    )
    return connection.execute(query, {"me": annotator}).fetchone()


def _gold(connection: sqlite3.Connection, annotator: str, seed: int) -> sqlite3.Row | None:
    """A gold item that the annotator has not seen; each annotator gets them in another order."""
    query = f"SELECT *, 0 AS occasion FROM items WHERE gold IS NOT NULL AND retired = 0 AND {_UNSEEN} AND {_UNFLAGGED}"
    found = connection.execute(query, {"me": annotator}).fetchall()
    return min(found, key=lambda row: seeds.number(seed, "gold", annotator, row["id"]), default=None)


def _again(connection: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
    """The oldest item that the annotator labeled once, at least REPEAT_AFTER items ago."""
    query = (
        "SELECT items.*, 1 AS occasion, s.created AS labeled FROM current AS s JOIN items ON items.id = s.item "
        "WHERE s.annotator = :me AND s.kind = 'label' AND s.occasion = 0 AND retired = 0 AND gold IS NULL "
        "AND task <> 'demonstration' AND NOT EXISTS (SELECT 1 FROM current AS t WHERE t.item = s.item "
        "AND t.annotator = :me AND t.occasion = 1) ORDER BY s.created LIMIT 1"
    )
    row: sqlite3.Row | None = connection.execute(query, {"me": annotator}).fetchone()
    later = "SELECT count(*) FROM current WHERE annotator = ? AND created > ?"
    if row is None or connection.execute(later, (annotator, row["labeled"])).fetchone()[0] < REPEAT_AFTER:
        return None
    return row
