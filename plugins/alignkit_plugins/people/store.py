"""The store: items, append-only events and guidelines in one SQLite file.

`Store.submit` returns only when the event is on disk. Submitting it again, with the same uuid,
changes nothing. What counts is a view over the events (`alignkit_plugins.people.database`): nothing
is ever changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from alignkit_plugins.people import records
from alignkit_plugins.people.database import connected, create, in_words, is_remote, tidy
from alignkit_plugins.people.items import Item, filled
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.records import Event, Receipt, Stored


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
    writes: bool = True
    warnings: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        new: bool = False,
        write: bool = True,
        clock: Callable[[], datetime] = now,
    ) -> Self:
        """Open a store. new: make it if it does not exist. write: false for reading only.

        Raises `DataError` for a file that is missing, damaged, no store, or of another version.
        `warnings` says that the file is on a network file system.
        """
        path = Path(path)
        if new:
            create(path)
        store = cls(path, connected(path, write=write), clock, write)
        if write and is_remote(path):
            store.warnings.append(
                f"{path}: on a network file system, which may lose labels; move it to a local disk"
            )
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The object cannot be used afterwards."""
        with self._lock:
            self.connection.close()
        if not self.writes:
            tidy(self.path)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """The block reads one state of the store, whoever writes meanwhile."""
        with self._lock, in_words(self.path):
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block writes; on disk when it ends."""
        with self._lock, in_words(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
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

    @property
    def salt(self) -> str:
        """Random text of this store, so that pseudonyms do not reveal names."""
        return str(
            json.loads(self.rows("SELECT value FROM settings WHERE name = 'salt'")[0]["value"])
        )

    # Guidelines

    def add_guidelines(self, text: str) -> str:
        """Store the guidelines that hold from now on, and return their hash, which every label
        names.
        """
        name, known = hashlib.sha256(text.encode()).hexdigest()[:16], self.guidelines()
        if not known or known[-1][0] != name:
            with self.transaction() as connection:
                values = (name, text, records.stamp(self.clock()))
                connection.execute("INSERT OR REPLACE INTO guidelines VALUES (?, ?, ?)", values)
        return name

    def guidelines(self) -> list[tuple[str, str]]:
        """The versions of the guidelines, as (hash, text), the one that holds last."""
        found = self.rows("SELECT hash, text FROM guidelines ORDER BY created, hash")
        return [(row["hash"], row["text"]) for row in found]

    # Items

    def add(self, items: Iterable[Item], wanted: int = 1) -> None:
        """Add items; known ones stay as they are. wanted: annotators for each.

        Raises `BadRow` for an item that nobody could label; nothing is added then.
        """
        ready = [item.checked() for item in items]
        with self.transaction() as connection:
            for item in ready:
                if not connection.execute(
                    "SELECT 1 FROM items WHERE id = ?", (item.id,)
                ).fetchone():
                    records.insert_item(connection, item, wanted=wanted)

    def ask(self, items: Iterable[Item], batch: str, wanted: int = 1) -> None:
        """Let people label these items, and no other ones of the batch, which are retired with
        their labels.

        Raises `BadRow` for an item that nobody could label; nothing changes then.
        """
        ready = {item.id: replace(item, batch=batch).checked() for item in items}
        with self.transaction() as connection:
            for item in ready.values():
                known = connection.execute(
                    "SELECT * FROM items WHERE id = ?", (item.id,)
                ).fetchone()
                if known is None:
                    records.insert_item(connection, item, wanted=wanted)
                else:
                    _ask_again(connection, known, item, wanted)
            for row in connection.execute(
                "SELECT id FROM items WHERE batch = ? AND retired = 0", (batch,)
            ).fetchall():
                if row["id"] not in ready:
                    records.update_item(connection, row["id"], {"retired": 1}, revised=True)

    def item(self, item: str) -> Stored:
        """An item by its id. Raises `BadLabel` if the store does not have it."""
        found = self.rows("SELECT * FROM items WHERE id = ?", item)
        if not found:
            raise BadLabel(
                f"{self.path}: no item {item!r}; it was perhaps labeled in another store"
            )
        return records.stored_of(found[0])

    def items(self) -> list[Stored]:
        """All items in the order in which they were added, retired ones included."""
        return [
            records.stored_of(row) for row in self.rows("SELECT * FROM items ORDER BY position")
        ]

    # Events

    def submit(self, event: Event) -> Receipt:
        """Store what a person did, on disk when this returns. The same event again changes nothing.

        Raises `BadLabel` for one that is not valid. A label of an item that has changed since is
        stored, and the receipt says so. A label, a skip or a flag ends the annotator's lease.
        """
        item = None if event.item is None else self.item(event.item).item
        event = records.checked_event(event, item)
        with self.transaction() as connection:
            known = connection.execute(
                "SELECT * FROM events WHERE uuid = ?", (event.uuid,)
            ).fetchone()
            if known is not None:
                earlier = records.event_of(known)
                records.check_same(earlier, event)
                return Receipt(earlier, False, False)
            if event.kind == "undo":
                records.check_undo(connection, event)
            last = connection.execute("SELECT max(created) FROM events").fetchone()[0] or ""
            event = replace(event, created=records.after(last, records.stamp(self.clock())))
            records.insert_event(connection, event)
            if event.item is None:
                return Receipt(event, True, False)
            if event.kind in ("label", "skip", "flag"):
                owner = (event.annotator, event.item)
                connection.execute("DELETE FROM leases WHERE annotator = ? AND item = ?", owner)
            records.refresh(connection, event.item)
            row = connection.execute(
                "SELECT revision, retired FROM items WHERE id = ?", (event.item,)
            ).fetchone()
            return Receipt(event, True, bool(row["retired"]) or row["revision"] != event.revision)

    def events(self) -> list[Event]:
        """All events in order; undone ones and their undoing included."""
        return [
            records.event_of(row)
            for row in self.rows("SELECT * FROM events ORDER BY created, uuid")
        ]

    def last(self, annotator: str) -> Event | None:
        """The annotator's last event that can be undone: a label, a skip or a flag."""
        query = "SELECT * FROM effective WHERE annotator = ? AND kind IN ('label', 'skip', 'flag')"
        found = self.rows(f"{query} ORDER BY created DESC, uuid DESC LIMIT 1", annotator)
        return records.event_of(found[0]) if found else None


def _ask_again(connection: sqlite3.Connection, known: sqlite3.Row, item: Item, wanted: int) -> None:
    """Ask about an item that the store has: what is not said of it now stays.

    If several stages ask, it belongs to the one that wants the most labels, so it is open until
    that one has them.
    """
    stored = records.stored_of(known)
    if stored.item.batch not in ("", item.batch) and not stored.retired and stored.wanted >= wanted:
        item, wanted = replace(item, batch=stored.item.batch), stored.wanted
    values = {**records.columns(filled(item, stored.item)), "wanted": wanted, "retired": 0}
    if any(known[name] != value for name, value in values.items()):
        records.update_item(connection, item.id, values)
