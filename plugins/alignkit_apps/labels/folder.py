"""The folder of an export: all events and items as JSON lines, the labels in several layouts, and a data card."""

from __future__ import annotations

import importlib
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows, raise_if_bad
from alignkit.errors import BadRow, DataError
from alignkit.io.atomic import replace_folder
from alignkit_apps.feedback import records
from alignkit_apps.feedback.effective_labels import Labeled, labeled
from alignkit_apps.feedback.items import Item
from alignkit_apps.feedback.labels import BadLabel
from alignkit_apps.feedback.merging import Content, merge
from alignkit_apps.feedback.records import Event, Stored
from alignkit_apps.feedback.rows import counts, row_of
from alignkit_apps.feedback.store import Store
from alignkit_apps.labels import label_studio
from alignkit_apps.labels.answers import Answered, answered
from alignkit_apps.labels.card import card
from alignkit_apps.labels.consent import LeftOut, shareable
from alignkit_apps.labels.layouts import FILES, layouts

ITEMS, EVENTS, GUIDELINES, LABELS, CARD = (
    "items.jsonl", "events.jsonl", "guidelines.jsonl", "labels.jsonl", "README.md",
)  # fmt: skip


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
    found, left_out.unfit = answered(entries)
    by_task: dict[str, list[Answered]] = {}
    for entry in found:
        by_task.setdefault(entry.item.task, []).append(entry)
    return {f"label-studio/{task}.json": list(label_studio.tasks(own)) for task, own in by_task.items()}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    else:
        path.write_text("".join(map(_line, rows)), encoding="utf-8")


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
        ITEMS: [_item_row(stored) for stored in content.items],
        EVENTS: [_event_row(event) for event in content.events],
        GUIDELINES: [{"hash": name, "text": text} for name, text in content.guidelines],
        LABELS: [row_of(entry) for entry in entries],
    }
    tables |= {FILES[name]: list(rows) for name, rows in layouts(entries).items()}
    return {name: rows for name, rows in tables.items() if rows or name in (ITEMS, EVENTS)}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _item_row(stored: Stored) -> dict[str, Any]:
    item = stored.item
    fields = {name: getattr(item, name) for name in ("task", "prompt", "responses", "criteria", "tools", "origins")}
    more = {
        name: getattr(item, name) for name in ("meta", "license", "author", "batch", "gold", "opinions", "held_out")
    }
    return {"id": item.id, "revision": stored.revision, **fields, **more}


def _event_row(event: Event) -> dict[str, Any]:
    return asdict(event)


# Reading an export


def content_of_folder(folder: Path) -> Content:
    """What an export holds. Raises `DataError` that lists every row that is not as an export writes it."""
    if not (folder / EVENTS).is_file() or not (folder / ITEMS).is_file():
        raise DataError(f"{folder}: not an export of feedback: expected {ITEMS} and {EVENTS}")
    bad: list[SkippedRow] = []
    items: list[Stored] = _read(folder / ITEMS, _stored, bad)
    known = {stored.item.id: stored.item for stored in items}
    events = _read(folder / EVENTS, lambda row: _event(row, known), bad)
    guidelines = folder / GUIDELINES
    texts = _read(guidelines, lambda row: (row["hash"], row["text"]), bad) if guidelines.is_file() else []
    if bad:
        raise bad_rows_error(bad)
    return Content(items, events, texts)


def _read(path: Path, read: Callable[[Any], Any], bad: list[SkippedRow]) -> list[Any]:
    found = []
    for number, row in file_rows(path):
        try:
            found.append(read(raise_if_bad(row)))
        except (BadRow, BadLabel) as error:
            bad.append(SkippedRow(str(path), number, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            bad.append(SkippedRow(str(path), number, f"not as an export writes it: {type(error).__name__}: {error}"))
    return found


def _stored(row: Any) -> Stored:
    fields = {name: value for name, value in row.items() if name not in ("id", "revision")}
    for name in ("prompt", "criteria", "tools", "origins"):
        fields[name] = tuple(fields[name])
    fields["responses"] = tuple(a if isinstance(a, str) else tuple(a) for a in fields["responses"])
    item = Item(**fields).checked()
    if item.id != row["id"]:
        raise BadRow(f"the item's content was changed: its id is {row['id']}, but should be {item.id}")
    return Stored(item, int(row["revision"]), 0, 1, 0, False)


def _event(row: Any, items: Mapping[str, Item]) -> Event:
    event = Event(**{**row, "order": tuple(row["order"])})
    if event.item is not None and event.item not in items:
        raise BadRow(f"the event is about an item that is not there, {event.item}")
    records.check_time(event.created)
    return records.checked_event(event, None if event.item is None else items[event.item])
