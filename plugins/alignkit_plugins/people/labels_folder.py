"""The folder of an export: all items and events, and the labels that count, as JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, jsonl_rows, raise_if_bad
from alignkit.errors import BadRow, DataError
from alignkit.io.atomic import replace_folder
from alignkit_plugins.people import records
from alignkit_plugins.people.consent import UNLICENSED, LeftOut, shareable
from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.items import Item, tupled
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.merging import Content, merge
from alignkit_plugins.people.records import Event, Stored
from alignkit_plugins.people.rows import counts, row_of
from alignkit_plugins.people.store import Store

ITEMS, EVENTS, GUIDELINES, LABELS = (
    "items.jsonl",
    "events.jsonl",
    "guidelines.jsonl",
    "labels.jsonl",
)
FIELDS = [field.name for field in fields(Item) if field.name != "priority"]


@dataclass(frozen=True)
class Export:
    """What was written: files with the number of their rows, the people whose labels they hold, and
    what is missing.
    """

    files: dict[str, int]
    people: int
    left_out: LeftOut


def export(store: Store, out: Path, license: str = "") -> Export:
    """Write what may be shared into a folder. The same store gives the same bytes, and so does a
    store made of them.

    license: of items that state none. Raises `DataError` if nothing may be shared, or if the folder
    holds something else, such as an export of another store.
    """
    _check_target(store, out)
    content, left_out = shareable(store, license)
    if not content.items:
        reasons = "; ".join(left_out.lines()) or "it has no labels"
        needs = "An item needs a license, and its annotators' consent"
        unlicensed = left_out.reasons[UNLICENSED]
        help = (
            "\n  help: name the license of items that state none: --license NAME"
            if unlicensed
            else ""
        )
        raise DataError(f"{store.path}: nothing may be exported: {reasons}. {needs}{help}")
    tables: dict[str, list[dict[str, Any]]] = {
        ITEMS: [],
        EVENTS: [asdict(event) for event in content.events],
    }
    for stored in content.items:
        values = {name: getattr(stored.item, name) for name in FIELDS}
        tables[ITEMS].append({"id": stored.item.id, "revision": stored.revision, **values})
    if content.guidelines:
        tables[GUIDELINES] = [{"hash": name, "text": text} for name, text in content.guidelines]
    with tempfile.TemporaryDirectory(prefix="alignkit-feedback-") as folder:
        with Store.open(Path(folder) / "shared.feedback", new=True) as shared:
            merge(shared, content)
            tables[LABELS] = [row_of(entry) for entry in labeled(shared) if counts(entry)]
    with replace_folder(out) as new:
        for name, rows in tables.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (new / name).write_text("".join(lines), encoding="utf-8")
    people = len({event.annotator for event in content.events})
    return Export({name: len(rows) for name, rows in tables.items()}, people, left_out)


def _check_target(store: Store, out: Path) -> None:
    """Raise DataError unless the folder is new, empty, or an export of which the store has every
    event.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / EVENTS).is_file():
        raise DataError(f"{out}: exists and is no earlier export; name another folder")
    known = {event.uuid for event in store.events()}
    unknown = sum(
        not (isinstance(row, dict) and row.get("uuid") in known)
        for _, row in jsonl_rows(out / EVENTS)
    )
    if unknown:
        raise DataError(
            f"{out}: is an export of another store: {unknown} of its events are not in "
            f"{store.path}; name another folder"
        )


# Reading an export


def content_of_folder(folder: Path) -> Content:
    """What an export holds. Raises `DataError` that lists every row that is not as an export writes
    it.
    """
    if not (folder / EVENTS).is_file() or not (folder / ITEMS).is_file():
        raise DataError(f"{folder}: not an export of feedback: expected {ITEMS} and {EVENTS}")
    bad: list[SkippedRow] = []
    items: list[Stored] = _rows(folder / ITEMS, _stored, bad)
    known = {stored.item.id: stored.item for stored in items}
    events = _rows(folder / EVENTS, lambda row: _event(row, known), bad)
    guidelines = folder / GUIDELINES
    texts = (
        _rows(guidelines, lambda row: (row["hash"], row["text"]), bad)
        if guidelines.is_file()
        else []
    )
    if bad:
        raise bad_rows_error(bad)
    return Content(items, events, texts)


def _rows(path: Path, read: Callable[[Any], Any], bad: list[SkippedRow]) -> list[Any]:
    """What `read` makes of the rows of a file. bad: gets the others."""
    rows = []
    for number, row in jsonl_rows(path):
        try:
            rows.append(read(raise_if_bad(row)))
        except (BadRow, BadLabel) as error:
            bad.append(SkippedRow(str(path), number, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            bad.append(
                SkippedRow(
                    str(path),
                    number,
                    f"not as an export writes it: {type(error).__name__}: {error}",
                )
            )
    return rows


def _stored(row: Any) -> Stored:
    item = Item(
        **tupled({name: value for name, value in row.items() if name not in ("id", "revision")})
    ).checked()
    if item.id != row["id"]:
        raise BadRow(
            f"the item's content was changed: its id is {row['id']}, but should be {item.id}"
        )
    return Stored(item, int(row["revision"]), 0, 1, 0, False)


def _event(row: Any, items: Mapping[str, Item]) -> Event:
    event = Event(**{**row, "order": tuple(row["order"])})
    if event.item is not None and event.item not in items:
        raise BadRow(f"the event is about an item that is not there, {event.item}")
    records.check_time(event.created)
    return records.checked_event(event, None if event.item is None else items[event.item])
