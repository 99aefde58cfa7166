"""The folder of an export: all events and items as JSON lines, the labels in several layouts, and a data card."""

from __future__ import annotations

import importlib
import json
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows
from alignkit.errors import BadRow, DataError
from alignkit.io.atomic import replace_folder
from alignkit_apps.labels import label_studio
from alignkit_apps.labels.card import card
from alignkit_apps.labels.consent import LeftOut, shareable
from alignkit_apps.labels.label_studio import read_rows
from alignkit_apps.labels.layouts import FILES, layouts
from alignkit_plugins.people import records
from alignkit_plugins.people.effective_labels import Labeled, labeled
from alignkit_plugins.people.items import Item, tupled
from alignkit_plugins.people.merging import Content, merge
from alignkit_plugins.people.records import Event, Stored
from alignkit_plugins.people.rows import counts, row_of
from alignkit_plugins.people.store import Store

ITEMS, EVENTS, GUIDELINES, LABELS, CARD = (
    "items.jsonl", "events.jsonl", "guidelines.jsonl", "labels.jsonl", "README.md",
)  # fmt: skip


FIELDS = [field.name for field in fields(Item) if field.name not in ("file", "row", "overlap", "priority")]
LAYOUTS = ("parquet", "label-studio")  # besides JSON lines


@dataclass(frozen=True)
class Export:
    """What was written: files with the number of their rows, the people whose labels they hold, and what is missing."""

    files: dict[str, int]
    people: int
    left_out: LeftOut


def export(store: Store, out: Path, more: Sequence[str] = ()) -> Export:
    """Write what may be shared into a folder. The same store gives the same bytes, and so does a store made of them.

    more: which of LAYOUTS to write, too. Raises `DataError` if nothing may be shared, or if the folder holds something
    else, such as an export of another store.
    """
    _check_target(store, out)
    content, left_out = shareable(store)
    if not content.items:
        reasons = "; ".join(left_out.lines()) or "it has no labels"
        needs = "An item needs a license, and its annotators' consent"
        command = f"alignkit label {shlex.quote(str(store.path))} --license NAME"
        help = f"\n  help: give items without a license one: {command}" if left_out.unlicensed else ""
        raise DataError(f"{store.path}: nothing may be exported: {reasons}. {needs}{help}")
    with tempfile.TemporaryDirectory(prefix="alignkit-feedback-") as folder:
        with Store.open(Path(folder) / "shared.feedback", new=True) as shared:
            merge(shared, content)
            entries = [entry for entry in labeled(shared) if counts(entry)]
    rows = _tables(content, entries)
    if "parquet" in more:
        names = {name: name.replace(".jsonl", ".parquet") for name in FILES.values()}
        rows = {names.get(name, name): lines for name, lines in rows.items()}
    rows |= _of_tools(entries, more, left_out)
    with replace_folder(out) as new:
        for name, lines in rows.items():
            _write(new / name, lines)
        (new / CARD).write_text(card(content, entries, {name: len(lines) for name, lines in rows.items()}))
    people = len({event.annotator for event in content.events})
    return Export({name: len(lines) for name, lines in rows.items()}, people, left_out)


def _of_tools(entries: Iterable[Labeled], more: Sequence[str], left_out: LeftOut) -> dict[str, list[Mapping[str, Any]]]:
    """A file for each task, because a project of Label Studio has one kind of question."""
    if "label-studio" not in more:
        return {}
    found, left_out.unfit = label_studio.tasks(entries)
    return {f"label-studio/{task}.json": rows for task, rows in found.items()}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        columns = {name: None for row in rows for name in row}  # Arrow takes the columns of the first row
        parquet.write_table(arrow.Table.from_pylist([{**columns, **row} for row in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _check_target(store: Store, out: Path) -> None:
    """Raise DataError unless the folder is new, empty, or an export of which the store has every event."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / EVENTS).is_file():
        raise DataError(f"{out}: exists and is no earlier export; name another folder")
    known = {event.uuid for event in store.events()}
    unknown = sum(not (isinstance(row, dict) and row.get("uuid") in known) for _, row in file_rows(out / EVENTS))
    if unknown:
        raise DataError(
            f"{out}: is an export of another store: {unknown} of its events are not in {store.path}; "
            "name another folder"
        )


def _tables(content: Content, entries: Iterable[Labeled]) -> dict[str, list[Mapping[str, Any]]]:
    entries = list(entries)
    tables: dict[str, list[Mapping[str, Any]]] = {
        ITEMS: [
            {"id": stored.item.id, "revision": stored.revision, **{name: getattr(stored.item, name) for name in FIELDS}}
            for stored in content.items
        ],
        EVENTS: [asdict(event) for event in content.events],
        GUIDELINES: [{"hash": name, "text": text} for name, text in content.guidelines],
        LABELS: [row_of(entry) for entry in entries],
    }
    tables |= {FILES[name]: list(rows) for name, rows in layouts(entries).items()}
    return {name: rows for name, rows in tables.items() if rows or name in (ITEMS, EVENTS)}


# Reading an export


def content_of_folder(folder: Path) -> Content:
    """What an export holds. Raises `DataError` that lists every row that is not as an export writes it."""
    if not (folder / EVENTS).is_file() or not (folder / ITEMS).is_file():
        raise DataError(f"{folder}: not an export of feedback: expected {ITEMS} and {EVENTS}")
    bad: list[SkippedRow] = []
    writer = "an export"
    items: list[Stored] = read_rows(folder / ITEMS, _stored, writer, bad)
    known = {stored.item.id: stored.item for stored in items}
    events = read_rows(folder / EVENTS, lambda row: _event(row, known), writer, bad)
    guidelines = folder / GUIDELINES
    texts = read_rows(guidelines, lambda row: (row["hash"], row["text"]), writer, bad) if guidelines.is_file() else []
    if bad:
        raise bad_rows_error(bad)
    return Content(items, events, texts)


def _stored(row: Any) -> Stored:
    item = Item(**tupled({name: value for name, value in row.items() if name not in ("id", "revision")})).checked()
    if item.id != row["id"]:
        raise BadRow(f"the item's content was changed: its id is {row['id']}, but should be {item.id}")
    return Stored(item, int(row["revision"]), 0, 1, 0, False)


def _event(row: Any, items: Mapping[str, Item]) -> Event:
    event = Event(**{**row, "order": tuple(row["order"])})
    if event.item is not None and event.item not in items:
        raise BadRow(f"the event is about an item that is not there, {event.item}")
    records.check_time(event.created)
    return records.checked_event(event, None if event.item is None else items[event.item])
