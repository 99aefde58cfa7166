"""Stores of several people as one: equal items are one item, and events with the same uuid are one
event.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignkit.errors import DataError
from alignkit_plugins.people import records
from alignkit_plugins.people.items import filled
from alignkit_plugins.people.records import Event, Stored
from alignkit_plugins.people.store import Store

MOST_NAMED = 5  # differences in an error


@dataclass(frozen=True)
class Content:
    """What a store holds, without leases. salt: of the pseudonyms in its exports; empty if it is
    unknown.
    """

    items: Sequence[Stored]
    events: Sequence[Event]
    guidelines: Sequence[tuple[str, str]] = ()
    salt: str = ""


@dataclass
class Merged:
    """What `merge` did. items, events: new ones. known: events that the target had. gold: different
    gold labels.
    """

    items: int = 0
    events: int = 0
    known: int = 0
    gold: int = 0


def content_of(store: Store) -> Content:
    """All of a store at one moment."""
    with store.snapshot():
        return Content(store.items(), store.events(), store.guidelines(), store.salt)


def merge(target: Store, content: Content, name: str = "the other store") -> Merged:
    """Add what another store holds; twice is as good as once. name: of the other store, in errors.

    An item that both have keeps the target's gold label, and gets a license, a gold label or
    columns if the target has none. Nothing is written if the two contradict each other: raises
    `DataError` for an event with the same uuid that says something else, or an item with another
    license.
    """
    done = Merged()
    ours = {stored.item.id: stored for stored in target.items()}
    known = {event.uuid: event for event in target.events()}
    _check(target, ours, known, content, name)
    with target.transaction() as connection:
        for stored in content.items:
            _add_item(connection, ours.get(stored.item.id), stored, done)
        for text_hash, text in content.guidelines:
            values = (text_hash, text, records.stamp(target.clock()))
            connection.execute("INSERT OR IGNORE INTO guidelines VALUES (?, ?, ?)", values)
        touched = _add_events(connection, known, content.events, done)
        for item in touched:
            records.refresh(connection, item)
    return done


def _check(
    target: Store, ours: dict[str, Stored], known: dict[str, Event], content: Content, name: str
) -> None:
    faults = []
    for stored in content.items:
        mine = ours.get(stored.item.id)
        licenses = {item.license for item in (stored.item, *([mine.item] if mine else []))} - {""}
        if len(licenses) > 1:
            faults.append(
                f"item {stored.item.id} has the licenses {' and '.join(sorted(licenses))}"
            )
    there = {stored.item.id for stored in content.items}
    for event in content.events:
        if event.item is not None and event.item not in there:
            faults.append(f"event {event.uuid} is about an item that is not there, {event.item}")
        if known.get(event.uuid, event) != event:
            faults.append(
                f"event {event.uuid} says two things: the stores have it with different contents"
            )
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DataError(
            f"{name} does not fit {target.path}: {'; '.join(faults[:MOST_NAMED])}{more}. Nothing "
            "was merged"
        )


def _add_item(
    connection: sqlite3.Connection, mine: Stored | None, theirs: Stored, done: Merged
) -> None:
    if mine is None:
        known = {
            "revision": theirs.revision,
            "retired": int(theirs.retired),
            "wanted": theirs.wanted,
        }
        records.insert_item(connection, theirs.item, **known)
        done.items += 1
        return
    done.gold += (
        None not in (mine.item.gold, theirs.item.gold) and mine.item.gold != theirs.item.gold
    )
    item, retired = filled(mine.item, theirs.item), mine.retired or theirs.retired
    if item != mine.item or retired != mine.retired:
        values = {**records.columns(item), "retired": int(retired)}
        records.update_item(connection, item.id, values, revised=True)


def _add_events(
    connection: sqlite3.Connection, known: dict[str, Event], events: Iterable[Event], done: Merged
) -> list[str]:
    """Add the events that are new, in order, and return the items that they are about."""
    touched: dict[str, None] = {}
    for event in sorted(events, key=lambda event: (event.created, event.uuid)):
        if event.uuid in known:
            done.known += 1
            continue
        records.insert_event(connection, event)
        done.events += 1
        if event.item is not None:
            touched[event.item] = None
    return list(touched)
