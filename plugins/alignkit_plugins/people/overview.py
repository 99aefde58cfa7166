"""What a store holds, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from alignkit.evaluation.statistics import rate, shown
from alignkit.report import Block, Table
from alignkit_plugins.people.agreement import agreement, people_table, sentence
from alignkit_plugins.people.effective_labels import Labeled, consents, labeled
from alignkit_plugins.people.labels import FLAGS
from alignkit_plugins.people.rows import counts
from alignkit_plugins.people.store import Event, Store

SHARES = {True: "yes", False: "no", None: "not asked"}


def overview(store: Store) -> dict[str, Any]:
    """What a store holds, as plain data: items by task, people, how far they agree, and what waits
    for a decision.
    """
    entries, agreed, events = labeled(store), consents(store), store.events()
    names = sorted({event.annotator for event in events})
    return {
        "store": str(store.path),
        "tasks": {
            task: _task(entries, task)
            for task in sorted({entry.stored.item.task for entry in entries})
        },
        "people": {
            name: {**_person(entries, events, name), "shares": agreed.get(name)} for name in names
        },
        "agreement": agreement(entries),
        "reviewed": _reviewed(entries),
        "licenses": dict(Counter(entry.stored.item.license or "none" for entry in entries)),
    }


def _task(entries: Sequence[Labeled], task: str) -> dict[str, int]:
    own = [entry for entry in entries if entry.stored.item.task == task]
    live = [entry for entry in own if not entry.stored.retired]
    return {
        "items": len(own),
        "labels": sum(len(entry.votes) for entry in own),
        "read by recipes": sum(map(counts, own)),
        "without label": sum(not entry.votes and entry.final is None for entry in live),
        "disputed": sum(entry.disputed for entry in live),
        "flagged": sum(bool(entry.flags) for entry in live),
        "gold": sum(entry.stored.item.gold is not None for entry in live),
        "retired": len(own) - len(live),
    }


def _person(entries: Sequence[Labeled], events: Sequence[Event], name: str) -> dict[str, Any]:
    votes = [vote for entry in entries for vote in entry.votes if vote.annotator == name]
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    kinds = Counter(event.kind for event in events if event.annotator == name)
    return {
        "labels": len(votes),
        "skips": kinds["skip"],
        "undone": kinds["undo"],
        "median seconds": median(seconds) if seconds else None,
    }


def _reviewed(entries: Sequence[Labeled]) -> dict[str, dict[str, Any]]:
    """For each writer of reviewed answers the share without a flag, which is appropriate, and with
    each flag.
    """
    answers: dict[str, list[Sequence[str]]] = {}
    for entry in entries:
        item, label = entry.stored.item, entry.final or {}
        for place, flags in enumerate(label.get("flags", ())):
            writer = item.origins[place] if item.origins else None
            answers.setdefault(writer or "unknown", []).append(flags)
    return {
        writer: {"answers": len(rows), "appropriate": rate([float(not row) for row in rows])}
        | {flag: sum(flag in row for row in rows) / len(rows) for flag in FLAGS}
        for writer, rows in answers.items()
    }


def blocks(facts: dict[str, Any]) -> list[Block]:
    """The report of an overview."""
    licenses = ", ".join(f"{name} {count}" for name, count in facts["licenses"].items())
    parts: list[Block] = [f"{facts['store']}; licenses of items: {licenses or '-'}"]
    tasks = [(task, *map(str, row.values())) for task, row in facts["tasks"].items()]
    heads = ["task", *next(iter(facts["tasks"].values()), {})]
    parts.append(Table("Items", heads, tasks) if tasks else "no items")
    reviewed = []
    for writer, row in facts["reviewed"].items():
        flags = [f"{row[flag]:.0%}" for flag in FLAGS]
        reviewed.append(
            (writer, str(row["answers"]), shown(row["appropriate"], percent=True), *flags)
        )
    if reviewed:
        parts.append(
            Table("Reviewed answers", ["writer", "answers", "appropriate", *FLAGS], reviewed)
        )
    people = []
    for name, row in facts["people"].items():
        seconds = "-" if row["median seconds"] is None else f"{row['median seconds']:g}"
        numbers = [str(row[key]) for key in ("labels", "skips", "undone")]
        people.append((name, *numbers, seconds, SHARES[row["shares"]]))
    heads = ["annotator", "labels", "skips", "undone", "median seconds", "agreed to share"]
    parts.append(Table("People", heads, people) if people else "no labels yet")
    table = people_table(facts["agreement"], "how far they agree")
    return [*parts, replace(table, note=sentence(facts["agreement"]))] if table.rows else parts
