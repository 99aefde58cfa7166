"""Labels as tasks of Label Studio: the JSON that it exports and imports (docs: Label Studio JSON format).

A task is `{data, annotations, predictions, meta}`. A preference is the result of the tag Pairwise; margins, bins and
verdicts are Choices, scores Rating, and texts TextArea. A ranking is a Ranker with a bucket for each rank, so it may
have ties. A ranking without buckets, which is read too, is a list from best to worst.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows, raise_if_bad
from alignkit.errors import BadRow, DataError
from alignkit_apps.feedback import records
from alignkit_apps.feedback.labels import BadLabel
from alignkit_apps.feedback.merging import Content
from alignkit_apps.feedback.records import Event, Stored, check_time
from alignkit_apps.feedback.store import Store
from alignkit_apps.labels.answers import (
    PROMPT,
    RESPONSE,
    Answered,
    columns_of,
    event_of,
    item_of,
    label_of,
    response_names,
    texts_of,
)

HOST = "@alignkit.invalid"  # ends the address of an annotator, who has none
_ITEMS, _RANK = "items", "rank_"


def tasks(entries: Sequence[Answered]) -> list[dict[str, Any]]:
    """The tasks."""
    return [_task(entry) for entry in entries]


def _task(entry: Answered) -> dict[str, Any]:
    item, texts = entry.item, texts_of(entry.item)
    names = response_names(texts)
    listed = [{"id": name, "title": name, "body": texts[name]} for name in names]
    data = {**texts, **({_ITEMS: listed} if item.task == "ranking" else {})}
    made = [_annotation(entry, annotator, names) for annotator in entry.answers]
    return {"data": data, "meta": columns_of(item), "annotations": made, "predictions": []}


def _annotation(entry: Answered, annotator: str, names: Sequence[str]) -> dict[str, Any]:
    results = [_result(name, value, names) for name, value in entry.answers[annotator].items()]
    seconds = {"lead_time": entry.seconds[annotator]} if annotator in entry.seconds else {}
    return {
        "completed_by": {"email": f"{annotator}{HOST}"},
        "result": results,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": entry.created[annotator],
        **seconds,
    }


def _result(name: str, value: Any, names: Sequence[str]) -> dict[str, Any]:
    """The result of a control tag that has the question's name."""
    if name == "preference":
        selected = "left" if value == names[0] else "right"
        return _tag(name, ",".join(names[:2]), "pairwise", {"selected": selected})
    if name == "ranking":
        buckets = {
            f"{_RANK}{rank}": [n for n, r in zip(names, value, strict=True) if r == rank] for rank in sorted(set(value))
        }
        return _tag(name, _ITEMS, "ranker", {"ranker": buckets})
    if name in ("answer", "note"):
        return _tag(name, PROMPT, "textarea", {"text": [value]})
    if isinstance(value, int):
        return _tag(name, f"{RESPONSE}{name.rpartition('_')[2]}", "rating", {"rating": value})
    return _tag(name, PROMPT, "choices", {"choices": [value]})


def _tag(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


# Reading


def read(row: Any, license: str, now: str) -> Answered:
    """The item of a task, with everybody's answers; the last annotation of each person counts, skipped ones do not.

    license, now: of what names none. Raises `BadRow`.
    """
    if not isinstance(row, Mapping) or not {"data", "annotations"} <= row.keys():
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise BadRow(f"no task of Label Studio (data, annotations): {found:.80}")
    data, columns = row["data"], row.get("meta") or {}
    if not isinstance(data, Mapping) or not isinstance(columns, Mapping):
        raise BadRow("data and meta must be objects")
    texts = {name: value for name, value in data.items() if name != _ITEMS}
    names = response_names(texts)
    answers: dict[str, dict[str, Any]] = {}
    created, seconds = {}, {}
    for annotation in row["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        who = _annotator(annotation.get("completed_by"))
        answers[who] = dict(_answer(result, names) for result in annotation["result"])
        created[who] = _time(annotation.get("created_at"), now)
        if isinstance(spent := annotation.get("lead_time"), int | float):
            seconds[who] = float(spent)
    questions = {name for given in answers.values() for name in given}
    return Answered(item_of(texts, columns, questions, license), answers, created, seconds)


def _answer(result: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    name, kind, value = str(result.get("from_name")), result.get("type"), result["value"]
    if kind == "pairwise":
        return "preference", f"{RESPONSE}{1 if value['selected'] == 'left' else 2}"
    if kind == "ranker":
        return "ranking", _ranks(value["ranker"], names)
    if kind == "choices":
        (chosen,) = value["choices"]
        return name, chosen
    if kind == "textarea":
        return name, "\n".join(value["text"]) if isinstance(value["text"], list) else value["text"]
    if kind == "rating":
        return name, value["rating"]
    raise BadRow(f"a result of the type {kind!r:.40}; expected pairwise, ranker, choices, rating or textarea")


def _ranks(ranker: Any, names: Sequence[str]) -> list[int]:
    groups = list(ranker.values()) if isinstance(ranker, Mapping) else [[name] for name in ranker]
    ranks = {name: rank for rank, group in enumerate(groups, 1) for name in group}
    if set(ranks) != set(names):
        raise BadRow(f"a ranking must name {', '.join(names)}, not {', '.join(map(str, ranks)):.80}")
    return [ranks[name] for name in names]


def _annotator(user: Any) -> str:
    """A name for whoever made an annotation: an address, or the number of a user."""
    if isinstance(user, Mapping):
        user = user.get("email") or user.get("id")
    text = "unknown" if user is None else str(user)
    return text.removesuffix(HOST) if not text.isdigit() else f"user-{text}"


def _time(text: Any, now: str) -> str:
    try:
        check_time(str(text))
    except BadLabel:
        return now
    return str(text)


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
            entry = read(raise_if_bad(row), license, now)
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


def _events(entry: Answered) -> Iterator[Event]:
    for annotator, answers in entry.answers.items():
        label = label_of(entry.item, answers)
        event = event_of(entry.item, label, annotator, entry.created[annotator], entry.seconds.get(annotator))
        yield records.checked_event(event, entry.item)


def _consent(who: str, terms: str, now: str) -> Event:
    name = json.dumps([who, terms])
    payload = {"granted": True, "terms": terms}
    return records.checked_event(Event(str(uuid.uuid5(_SPACE, name)), who, "consent", payload, created=now), None)
