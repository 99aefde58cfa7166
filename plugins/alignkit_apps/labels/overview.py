"""What a store holds, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from alignkit.evaluation.statistics import rate, shown
from alignkit.report import Block, Table
from alignkit_plugins.people.effective_labels import Labeled, consents, labeled
from alignkit_plugins.people.labels import FLAGS
from alignkit_plugins.people.rows import counts
from alignkit_plugins.people.store import Store


def overview(store: Store) -> dict[str, Any]:
    """What a store holds, as plain data: items by task, people, and what waits for a decision."""
    entries, agreed, plan = labeled(store), consents(store), store.plan
    events = store.events()
    names = sorted({event.annotator for event in events})
    return {
        "store": str(store.path),
        "plan": {"overlap": plan.overlap, "gold_rate": plan.gold_rate, "repeat_rate": plan.repeat_rate},
        "tasks": {task: _task(entries, task) for task in sorted({entry.stored.item.task for entry in entries})},
        "people": {name: _person(entries, events, name) | {"shares": agreed.get(name)} for name in names},
        "reviewed": _reviewed(entries),
        "events": dict(Counter(event.kind for event in events)),
        "guidelines": len(store.guidelines()),
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


def _person(entries: Sequence[Labeled], events: Sequence[Any], name: str) -> dict[str, Any]:
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
    """For each writer of reviewed answers the share without a flag, which is appropriate, and with each flag."""
    answers: dict[str, list[Sequence[str]]] = {}
    for item, label in ((entry.stored.item, entry.final) for entry in entries if entry.stored.item.task == "review"):
        for place, flags in enumerate((label or {}).get("flags", ())):
            writer = item.origins[place] if item.origins else None
            answers.setdefault(writer or "unknown", []).append(flags)
    return {
        writer: {"answers": len(rows), "appropriate": rate([float(not row) for row in rows])}
        | {flag: sum(flag in row for row in rows) / len(rows) for flag in FLAGS}
        for writer, rows in answers.items()
    }


def blocks(facts: dict[str, Any]) -> list[Block]:
    """The report of an overview."""
    tasks = [(task, *map(str, row.values())) for task, row in facts["tasks"].items()]
    heads = ["task", *next(iter(facts["tasks"].values()), {})]
    shares = {True: "yes", False: "no", None: "not asked"}
    people = [
        (name, *(("-" if value is None else f"{value:g}") for value in list(row.values())[:-1]), shares[row["shares"]])
        for name, row in facts["people"].items()
    ]
    licenses = ", ".join(f"{name} {count}" for name, count in facts["licenses"].items())
    found: list[Block] = [f"{facts['store']}\noverlap {facts['plan']['overlap']}; licenses of items: {licenses or '-'}"]
    found += [Table("Items", heads, tasks)] if tasks else ["no items"]
    reviewed = [
        (
            writer,
            str(row["answers"]),
            shown(row["appropriate"], percent=True),
            *(f"{row[flag]:.0%}" for flag in FLAGS),
        )
        for writer, row in facts["reviewed"].items()
    ]
    heads = ["writer", "answers", "appropriate", *FLAGS]
    found += [Table("Reviewed answers", heads, reviewed)] if reviewed else []
    heads = ["annotator", "labels", "skips", "undone", "median seconds", "agreed to share"]
    found += [Table("People", heads, people)] if people else ["no labels yet"]
    return found
