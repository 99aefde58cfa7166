"""The store: items, append-only events and guidelines in one SQLite file.

`Store.submit` returns only when the event is on disk. Submitting it again, with the same uuid,
changes nothing. What counts is read from the events (`alignkit_plugins.people.votes`): nothing is
ever changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from alignkit.errors import AlignkitError, DataError
from alignkit_plugins.people.items import AUTHOR, Item
from alignkit_plugins.people.labels import KINDS, BadLabel, check_annotator, checked

SUFFIX = ".feedback"
VERSION = 0x616C6B04  # PRAGMA user_version: "alk" and the version

# An item and an event are JSON; the other columns are what queries need of it.
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE guidelines (hash TEXT PRIMARY KEY, text TEXT NOT NULL, created TEXT NOT NULL) STRICT;
CREATE TABLE items (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    content TEXT NOT NULL,
    retired INTEGER NOT NULL DEFAULT 0,
    wanted INTEGER NOT NULL DEFAULT 1,
    labels INTEGER NOT NULL DEFAULT 0,
    batch TEXT NOT NULL,
    gold TEXT,
    priority REAL NOT NULL,
    writer TEXT NOT NULL
) STRICT;
CREATE INDEX open_items ON items (priority DESC, position) WHERE labels < wanted AND retired = 0 AND gold IS NULL;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    content TEXT NOT NULL,
    uuid TEXT NOT NULL UNIQUE,
    item TEXT REFERENCES items (id),
    annotator TEXT NOT NULL,
    kind TEXT NOT NULL,
    seconds REAL,
    created TEXT NOT NULL,
    undone TEXT
) STRICT;
CREATE INDEX events_by_item ON events (item, annotator, created);
CREATE INDEX events_by_annotator ON events (annotator, kind, created);
CREATE INDEX events_by_time ON events (created);
CREATE INDEX undone_events ON events (undone) WHERE undone IS NOT NULL;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE (ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN SELECT RAISE (ABORT, 'events are never deleted'); END;
CREATE TABLE leases (
    item TEXT NOT NULL REFERENCES items (id),
    annotator TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (item, annotator)
) STRICT;
CREATE VIEW effective AS
    SELECT * FROM events AS e
    WHERE kind <> 'undo' AND NOT EXISTS (SELECT 1 FROM events AS u WHERE u.undone = e.uuid);
"""
# What annotators last said about items: a label, or that there will be none. {}: of which events.
LATEST = (
    "SELECT annotator, item, kind, content, max(created || uuid) AS time FROM effective "
    "WHERE kind IN ('label', 'skip') AND {} GROUP BY annotator, item"
)
_COUNT = f"SELECT count(*) FROM ({LATEST.format('item = items.id')}) WHERE kind = 'label'"
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DONE = ("label", "skip", "flag")  # kinds of what somebody says of an item, which can be undone


@dataclass(frozen=True)
class Event:
    """What a person did. kind: one of `labels.KINDS`; payload: of that kind, in the order shown
    (`labels`).

    uuid: chosen by the client, so that submitting twice is one event. item: the item's id; None for
    what is said of the annotator. guidelines: the hash that `Store.add_guidelines` returned. order:
    order[position] is the index of the response shown there. seconds: spent on the item. created:
    the store's clock, in UTC.
    """

    uuid: str
    annotator: str
    kind: str
    payload: Mapping[str, Any]
    item: str | None = None
    guidelines: str = ""
    order: tuple[int, ...] = ()
    seconds: float | None = None
    created: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(self.order))

    def checked(self, item: Item | None) -> Event:
        """The event in its stored form. item: the one that it names. Raises `BadLabel` that says
        what is wrong.
        """
        if self.kind not in KINDS:
            raise BadLabel(f"unknown kind of event {self.kind!r}; expected {', '.join(KINDS)}")
        check_annotator(self.annotator)
        if not _UUID.fullmatch(self.uuid):
            raise BadLabel(f"uuid must be one such as {uuid.UUID(int=0)}, not {self.uuid!r:.80}")
        if self.seconds is not None and not 0 <= self.seconds < math.inf:
            raise BadLabel(f"seconds must be a number of at least 0, not {self.seconds!r}")
        if (item is None) != (self.kind in ("consent", "results")):
            raise BadLabel(f"a {self.kind} must name {'its' if item is None else 'no'} item")
        task, count = ("", 0) if item is None else (item.task, len(item.responses))
        order = self.order or tuple(range(count))
        if sorted(order) != list(range(count)):
            raise BadLabel(f"the order shown must hold each response once, not {list(order)!r}")
        return replace(self, payload=checked(self.kind, self.payload, task, count), order=order)


@dataclass(frozen=True)
class Stored:
    """An item in a store. position: counts from 1. wanted: how many annotators should label it.
    labels: have.
    """

    item: Item
    position: int
    wanted: int
    labels: int
    retired: bool


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


@dataclass
class Store:
    """An open store. One object may be used by several threads, and one file by several
    processes.
    """

    path: Path
    connection: sqlite3.Connection
    clock: Callable[[], datetime] = now
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(
        cls, path: Path | str, *, new: bool = False, clock: Callable[[], datetime] = now
    ) -> Self:
        """Open a store. new: make it if it does not exist.

        Raises `DataError` for a file that is missing, damaged, no store, or of another version.
        """
        path = Path(path)
        with in_words(path):
            if new and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _create(path)
            if not path.is_file():
                raise DataError(f"{path}: there is no such file; expected a store of feedback")
            connection = _connection(path, "rw")
            try:
                _check(connection, path)
            except (AlignkitError, sqlite3.Error):
                connection.close()
                raise
        return cls(path, connection, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The object cannot be used afterwards."""
        with self._lock:
            self.connection.close()

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block writes; on disk when it ends. kind: DEFERRED for one
        state to read.
        """
        with self._lock, in_words(self.path):
            self.connection.execute(f"BEGIN {kind}")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any, **named: Any) -> list[sqlite3.Row]:
        """The rows of a query, with its values in their order or by name."""
        with self._lock, in_words(self.path):
            return self.connection.execute(query, named or values).fetchall()

    def count(self, query: str, *values: Any, **named: Any) -> int:
        """The number of rows of a query."""
        return int(self.rows(f"SELECT count(*) FROM ({query})", *values, **named)[0][0])

    @property
    def salt(self) -> str:
        """Random text of this store, so that pseudonyms do not reveal names."""
        return str(self.rows("SELECT value FROM settings WHERE name = 'salt'")[0]["value"])

    # Guidelines

    def add_guidelines(self, text: str) -> str:
        """Store the guidelines that hold from now on, and return their hash, which every label
        names.
        """
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if name not in [*self.guidelines()][-1:]:
            values = (name, text, self.time())
            with self.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO guidelines VALUES (?, ?, ?)", values)
        return name

    def guidelines(self) -> dict[str, str]:
        """The versions of the guidelines by their hashes, the one that holds last."""
        rows = self.rows("SELECT * FROM guidelines ORDER BY created, hash")
        return {row["hash"]: row["text"] for row in rows}

    # Items

    def add(self, items: Iterable[Item], wanted: int = 1) -> None:
        """Add items; those that the store has stay as they are. wanted: annotators for each.

        Raises `BadRow` for an item that nobody could label; nothing is added then.
        """
        ready = [item.checked() for item in items]
        with self.transaction():
            known = self.by_id()
            for item in ready:
                if item.id not in known:
                    self.put(item, wanted=wanted)

    def ask(self, items: Iterable[Item], batch: str, wanted: int = 1) -> list[str]:
        """Let people label these items, and no other ones of the batch, which are retired with
        their labels; returns the ids. An item that the store has in another order is asked in that
        one; if it has labels in both, as earlier versions asked, both stay.

        If several batches ask about an item, it belongs to the one that wants the most labels, so
        it is open until that one has them. Raises `BadRow` for an item that nobody could label;
        nothing changes then.
        """
        new = [replace(item, batch=batch).checked() for item in items]
        with self.transaction():
            known = self.by_id()
            alike = {(each.item.task, each.item.asks): each.item for each in known.values()}
            ready, shown = dict[str, Item](), dict[tuple[str, str], Item]()
            for item in new:
                place = item.task, item.asks
                one = item if item.id in known else item.like(alike.get(place, item))
                ready[one.id] = shown[place] = one
            for name, item in ready.items():
                old = known.get(name)
                if old is None:
                    self.put(item, wanted=wanted)
                elif old.item.batch in ("", batch) or old.retired or old.wanted < wanted:
                    self.put(item.filled(old.item), wanted=wanted)
                else:
                    theirs = replace(item, batch=old.item.batch)
                    self.put(theirs.filled(old.item), wanted=old.wanted)
            for name, old in known.items():
                twin = shown.get((old.item.task, old.item.asks), old.item)
                both = old.labels and old.item.like(twin).id in ready
                if old.item.batch == batch and name not in ready and not both:
                    self.put(old.item, wanted=old.wanted, retired=True)
        return [*ready]

    def put(self, item: Item, *, wanted: int, retired: bool = False) -> None:
        """Add an item that was checked, or change it."""
        values = {
            "id": item.id,
            "content": _json(item),
            "retired": int(retired),
            "wanted": wanted,
            "batch": item.batch,
            "gold": None if item.gold is None else json.dumps(item.gold),
            "priority": item.priority,
            "writer": item.author if AUTHOR in item.origins else "",
        }
        self._insert("items", values, "id")

    def _insert(self, table: str, values: Mapping[str, Any], key: str = "number") -> None:
        """Add a row, or change the one with its key."""
        marks = ", ".join("?" * len(values))
        changes = ", ".join(f"{name} = excluded.{name}" for name in values)
        new = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"
        query = f"{new} ON CONFLICT ({key}) DO UPDATE SET {changes}"
        self.connection.execute(query, tuple(values.values()))

    def item(self, item: str) -> Stored:
        """An item by its id. Raises `BadLabel` if the store does not have it."""
        rows = self.rows("SELECT * FROM items WHERE id = ?", item)
        if not rows:
            raise BadLabel(
                f"{self.path}: no item {item!r}; it was perhaps labeled in another store"
            )
        return stored_of(rows[0])

    def items(self) -> list[Stored]:
        """All items in the order in which they were added, retired ones included."""
        return list(map(stored_of, self.rows("SELECT * FROM items ORDER BY position")))

    def by_id(self) -> dict[str, Stored]:
        """All items by their ids, in the same order."""
        return {stored.item.id: stored for stored in self.items()}

    # Events

    def submit(self, event: Event) -> Event:
        """Store what a person did, on disk when this returns; returns it as it is stored.

        The same event again changes nothing. Raises `BadLabel` for one that is not valid. A label
        of an item that is retired is stored. A label, a skip or a flag ends the annotator's lease.
        """
        event = event.checked(None if event.item is None else self.item(event.item).item)
        with self.transaction() as connection:
            if earlier := self.rows("SELECT content FROM events WHERE uuid = ?", event.uuid):
                known = event_of(earlier[0])
                for name in ("item", "annotator", "kind", "payload"):
                    if getattr(known, name) != getattr(event, name):
                        raise BadLabel(f"event {event.uuid} was stored before with another {name}")
                return known
            if event.kind == "undo":
                self._check_undo(event)
            last = connection.execute("SELECT max(created) FROM events").fetchone()[0] or ""
            event = replace(event, created=self.time(last))
            self.append(event)
            if event.kind in DONE:
                owner = (event.annotator, event.item)
                connection.execute("DELETE FROM leases WHERE annotator = ? AND item = ?", owner)
        return event

    def append(self, event: Event) -> None:
        """Add an event that was checked, and count the labels of its item."""
        names = ("uuid", "item", "annotator", "kind", "seconds", "created")
        values = {name: getattr(event, name) for name in names}
        self._insert(
            "events", {**values, "content": _json(event), "undone": event.payload.get("of")}
        )
        self.connection.execute(f"UPDATE items SET labels = ({_COUNT}) WHERE id = ?", (event.item,))

    def events(self) -> list[Event]:
        """All events in order; undone ones and their undoing included."""
        rows = self.rows("SELECT content FROM events ORDER BY created, uuid")
        return list(map(event_of, rows))

    def effective(self, *kinds: str) -> list[Event]:
        """The events of these kinds that were not undone, in order."""
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT content FROM effective WHERE kind IN ({marks}) ORDER BY created, uuid"
        return list(map(event_of, self.rows(query, *kinds)))

    def last(self, annotator: str, *kinds: str) -> Event | None:
        """The annotator's last event of these kinds: by default of those that can be undone."""
        kinds = kinds or DONE
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT content FROM effective WHERE annotator = ? AND kind IN ({marks})"
        rows = self.rows(f"{query} ORDER BY created DESC, uuid DESC LIMIT 1", annotator, *kinds)
        return event_of(rows[0]) if rows else None

    def _check_undo(self, event: Event) -> None:
        """Raise `BadLabel` unless the event undoes one of the same annotator, on the same item,
        that counts, and that was not said to be final by showing what others said.
        """
        name = event.payload["of"]
        rows = self.rows("SELECT content FROM effective WHERE uuid = ?", name)
        if not rows:
            raise BadLabel(f"there is no event {name!r} to undo, or it is undone already")
        undone = event_of(rows[0])
        whose = (undone.annotator, undone.item)
        if whose != (event.annotator, event.item) or undone.kind not in DONE:
            raise BadLabel(
                f"event {name} is another annotator's, another item's, or cannot be undone"
            )
        seen = self.last(event.annotator, "results")
        if seen and undone.created < seen.created:
            raise BadLabel("what others said was shown since, so this stays")

    def time(self, last: str = "") -> str:
        """The time, as texts sort; after the last event's, even if the clock was set back."""
        time = self.clock().astimezone(UTC)
        if last:
            time = max(time, datetime.fromisoformat(last) + timedelta(microseconds=1))
        return time.isoformat(timespec="microseconds")


def stored_of(row: sqlite3.Row) -> Stored:
    """The item in a row."""
    item = Item(**json.loads(row["content"]))
    return Stored(item, row["position"], row["wanted"], row["labels"], bool(row["retired"]))


def event_of(row: sqlite3.Row) -> Event:
    """The event in a row."""
    return Event(**json.loads(row["content"]))


def _json(value: Item | Event) -> str:
    return json.dumps(asdict(value), ensure_ascii=False)  # in order: ids depend on it


# Files


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    """An open file. mode: rwc makes it; rw only reads one that is protected."""
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    for setting in ("trusted_schema = OFF", "foreign_keys = ON", "fullfsync = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _create(path: Path) -> None:
    """Make an empty store. If two processes do, the second finds the store of the first."""
    with closing(_connection(path, "rwc")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO settings VALUES ('salt', ?)", (secrets.token_hex(16),))
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `DataError` unless this is a whole store that this alignkit can read."""
    if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        raise DataError(f"{path}: not a store of feedback, or written by another alignkit")
    fault = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if fault != "ok":
        raise DataError(f"{path}: the store is damaged, perhaps copied in part: {fault}")


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as errors that users understand."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
            raise DataError(f"{path}: no store of labels; `alignkit label` makes one") from error
        raise DataError(f"{path}: cannot use the store: {error}") from error
