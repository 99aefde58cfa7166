"""Labels of Label Studio as the content of a store."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows, raise_if_bad
from alignkit.errors import BadRow, DataError
from alignkit_apps.feedback import records
from alignkit_apps.feedback.labels import BadLabel
from alignkit_apps.feedback.merging import Content
from alignkit_apps.feedback.records import Event, Stored
from alignkit_apps.feedback.store import Store
from alignkit_apps.feedback_export import label_studio
from alignkit_apps.feedback_export.answers import Answered, event_of, label_of

_SPACE = uuid.UUID("6f1c1f0e-7a52-5c0e-9a3e-616c6b66c002")  # of consent that was imported


def content_of_file(path: Path, target: Store | None, *, license: str = "", terms: str = "") -> Content:
    """The items and labels of a file that are new to a store; None: all of them.

    license: of items that name none. terms: to which all annotators of the file agreed, so that the labels may be
    shared; empty: nobody was asked. Raises `DataError` that lists every row that cannot be read.
    """
    now = records.stamp(datetime.now(UTC) if target is None else target.clock())
    known = {event.uuid for event in target.events()} if target is not None else set()
    bad: list[SkippedRow] = []
    items: dict[str, Stored] = {}
    events: dict[str, Event] = {}
    for number, row in file_rows(path):
        try:
            entry = _read(raise_if_bad(row), license, now)
            found = list(_events(entry))
        except (BadRow, BadLabel) as error:
            bad.append(SkippedRow(str(path), number, str(error)))
            continue
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            bad.append(SkippedRow(str(path), number, f"not as the tool writes it: {type(error).__name__}: {error}"))
            continue
        items.setdefault(entry.item.id, Stored(entry.item, 1, 0, 1, 0, False))
        events |= {event.uuid: event for event in found if event.uuid not in known}
    if bad:
        raise bad_rows_error(bad)
    if not items:
        raise DataError(f"{path}: there are no rows")
    people = sorted({event.annotator for event in events.values()})
    agreed = [event for who in people if terms and (event := _consent(who, terms, now)).uuid not in known]
    return Content(list(items.values()), [*agreed, *events.values()])


def _read(row: Any, license: str, now: str) -> Answered:
    if label_studio.is_task(row):
        return label_studio.read(row, license, now)
    columns = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
    raise BadRow(f"no task of Label Studio (data, annotations): {columns:.80}")


def _events(entry: Answered) -> Iterator[Event]:
    for annotator, answers in entry.answers.items():
        label = label_of(entry.item, answers)
        event = event_of(entry.item, label, annotator, entry.created[annotator], entry.seconds.get(annotator))
        yield records.checked_event(event, entry.item)


def _consent(who: str, terms: str, now: str) -> Event:
    name = json.dumps([who, terms])
    payload = {"granted": True, "terms": terms}
    return records.checked_event(Event(str(uuid.uuid5(_SPACE, name)), who, "consent", payload, created=now), None)
