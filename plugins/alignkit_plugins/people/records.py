"""Events and items as Python objects and as rows of a store's tables."""

from __future__ import annotations

import json
import math
import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from alignkit.errors import did_you_mean
from alignkit_plugins.people.items import Item, tupled
from alignkit_plugins.people.labels import KINDS, BadLabel, checked, checked_order

LONGEST_NAME = 64  # characters of an annotator's name
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_UNDOABLE = ("label", "skip", "flag", "adjudicate")


@dataclass(frozen=True)
class Event:
    """What a person did. kind: one of `labels.KINDS`; payload: of that kind, in the order shown
    (`labels`).

    uuid: chosen by the client, so that submitting twice is one event. item: the item's id; None for
    consent to everything that the annotator gives. revision: of the item, as it was shown.
    guidelines: the hash that `Store.add_guidelines` returned. order: order[position] is the index
    of the response shown there. seconds: spent on the item. created: the store's clock, in UTC.
    """

    uuid: str
    annotator: str
    kind: str
    payload: Mapping[str, Any]
    item: str | None = None
    revision: int = 1
    guidelines: str = ""
    order: tuple[int, ...] = ()
    seconds: float | None = None
    created: str = ""


@dataclass(frozen=True)
class Receipt:
    """An event is on disk. new: this call stored it. stale: its item has changed since it was
    shown, or is retired.
    """

    event: Event
    new: bool
    stale: bool


@dataclass(frozen=True)
class Stored:
    """An item in a store. position: counts from 1. wanted: how many annotators should label it.
    labels: have.
    """

    item: Item
    revision: int
    position: int
    wanted: int
    labels: int
    retired: bool


def checked_event(event: Event, item: Item | None) -> Event:
    """The event in its stored form. item: the one that it names. Raises `BadLabel` that says what
    is wrong.
    """
    if event.kind not in KINDS:
        raise BadLabel(
            f"unknown kind of event {event.kind!r}; "
            f"{did_you_mean(event.kind, KINDS) or 'expected ' + ', '.join(KINDS)}"
        )
    check_annotator(event.annotator)
    seconds = event.seconds
    if seconds is not None and not (
        isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0
    ):
        raise BadLabel(f"seconds must be a number of at least 0, not {seconds!r}")
    if (item is None) != (event.kind == "consent"):
        raise BadLabel(f"a {event.kind} must name {'its' if item is None else 'no'} item")
    count, task, criteria = (
        (0, "", ()) if item is None else (len(item.responses), item.task, item.criteria)
    )
    payload = checked(event.kind, event.payload, task, count, criteria)
    return replace(
        event, uuid=_uuid(event.uuid), payload=payload, order=checked_order(event.order, count)
    )


def check_annotator(name: str) -> None:
    """Raise `BadLabel` unless this can be the name of an annotator."""
    # One person with two spellings would agree with themselves.
    if (
        not isinstance(name, str)
        or not 0 < len(name.strip()) == len(name) <= LONGEST_NAME
        or not name.isprintable()
    ):
        raise BadLabel(
            f"an annotator's name must have 1 to {LONGEST_NAME} printable characters, without "
            f"blanks around them, not {name!r:.80}"
        )


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise BadLabel(f"uuid must be one such as {uuid.UUID(int=0)}, not {text!r:.80}") from None


def check_same(earlier: Event, event: Event) -> None:
    """Raise `BadLabel` if two events with one uuid say different things."""
    for name in ("item", "annotator", "kind", "payload"):
        ours, theirs = getattr(earlier, name), getattr(event, name)
        if ours != theirs:
            raise BadLabel(
                f"event {event.uuid} was stored before with another {name}: {ours!r}, now "
                f"{theirs!r}; use a new uuid for every event"
            )


def check_undo(connection: sqlite3.Connection, event: Event) -> None:
    """Raise `BadLabel` unless the event undoes one of the same annotator, on the same item, that
    counts.
    """
    name = event.payload["of"]
    row = connection.execute("SELECT * FROM effective WHERE uuid = ?", (name,)).fetchone()
    if row is None:
        raise BadLabel(f"there is no event {name!r} to undo, or it is undone already")
    if (row["annotator"], row["item"]) != (event.annotator, event.item) or row[
        "kind"
    ] not in _UNDOABLE:
        raise BadLabel(f"event {name} is another annotator's, another item's, or cannot be undone")


def stamp(time: datetime) -> str:
    """A time as it is stored: UTC with microseconds, so that texts sort as times do."""
    return time.astimezone(UTC).strftime(_TIME)


def check_time(text: str) -> None:
    """Raise `BadLabel` unless this is a time as `stamp` writes it."""
    try:
        same = stamp(datetime.strptime(text, _TIME).replace(tzinfo=UTC)) == text
    except (TypeError, ValueError):
        same = False
    if not same:
        raise BadLabel(
            f"created must be a time such as 2026-01-05T12:00:00.000000Z, not {text!r:.80}"
        )


def after(last: str, time: str) -> str:
    """A time after the last event's, even if the clock was set back: events are ordered by their
    times.
    """
    if time > last:
        return time
    return stamp(datetime.strptime(last, _TIME).replace(tzinfo=UTC) + timedelta(microseconds=1))


# Rows of tables


def event_of(row: sqlite3.Row) -> Event:
    """The event in a row."""
    names = set(row.keys()) - {"number", "undone", "display_order"}
    values = {name: row[name] for name in row.keys() if name in names}  # noqa: SIM118
    values["payload"] = json.loads(row["payload"])
    return Event(**values, order=tuple(json.loads(row["display_order"])))


def insert_event(connection: sqlite3.Connection, event: Event) -> None:
    """Append an event that was checked."""
    values = vars(event) | {
        "payload": _json(event.payload),
        "display_order": _json(event.order),
        "undone": event.payload["of"] if event.kind == "undo" else None,
    }
    del values["order"]
    _insert(connection, "events", values)


def refresh(connection: sqlite3.Connection, item: str) -> None:
    """Write down which events of an item stand now, and how many labels that are."""
    connection.execute("DELETE FROM current WHERE item = ?", (item,))
    connection.execute(
        "INSERT INTO current SELECT annotator, item, kind, uuid, created FROM (SELECT *, "
        "max(created || uuid) FROM effective WHERE item = ? AND kind IN ('label', 'skip') GROUP "
        "BY annotator)",
        (item,),
    )
    query = "SELECT count(*) FROM current WHERE item = ? AND kind = 'label'"
    connection.execute(f"UPDATE items SET labels = ({query}) WHERE id = ?", (item, item))


def stored_of(row: sqlite3.Row) -> Stored:
    """The item in a row."""
    known = {name: row[name] for name in ("task", "license", "author", "batch", "priority")}
    gold = json.loads(row["gold"]) if row["gold"] else None
    item = Item(gold=gold, **known, **tupled(json.loads(row["content"])))
    return Stored(
        item, row["revision"], row["position"], row["wanted"], row["labels"], bool(row["retired"])
    )


def columns(item: Item) -> dict[str, Any]:
    """The columns of an item, besides what its store knows of it."""
    content = {
        name: getattr(item, name) for name in ("tools", "origins", "meta") if getattr(item, name)
    }
    return {
        "content": _json({"prompt": item.prompt, "responses": item.responses, **content}),
        "gold": None if item.gold is None else _json(item.gold),
        **{name: getattr(item, name) for name in ("license", "author", "batch", "priority")},
    }


def insert_item(connection: sqlite3.Connection, item: Item, **known: Any) -> None:
    """Add an item that was checked. known: more columns."""
    _insert(connection, "items", {"id": item.id, "task": item.task, **columns(item), **known})


def update_item(
    connection: sqlite3.Connection, item: str, values: Mapping[str, Any], *, revised: bool = False
) -> None:
    """Change columns of an item. revised: labelers see the change, so events must name another
    revision.
    """
    sets = ", ".join(
        [*(f"{name} = ?" for name in values), *(["revision = revision + 1"] if revised else [])]
    )
    connection.execute(f"UPDATE items SET {sets} WHERE id = ?", (*values.values(), item))


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> None:
    marks = ", ".join("?" * len(values))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
