"""A store as rows, which the format `feedback` reads: each item with a label that counts.

`{feedback: 1, item: {task, prompt, responses, ...}, votes: [{annotator, label, ...}], final:
{...}}`: labels are in the item's own order. Only an item with a gold label, or that was
adjudicated, has `final`, and then only that counts. Of a gold item, `gold` is true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit_plugins.people.effective_labels import Labeled, Vote, labeled
from alignkit_plugins.people.items import Item, listed
from alignkit_plugins.people.store import Store

VERSION = 1  # of a row
PLAIN = ("task", "prompt", "responses", "tools", "origins", "meta", "license", "batch")


def store_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a store, numbered by the positions of their items. Reads it as it is now and
    leaves no trace.

    Without items that wait for adjudication, that have no label, that nobody is asked about any
    more, or whose author took the consent back.
    """
    with Store.open(path, write=False) as store:
        entries = labeled(store)
    for entry in entries:
        if counts(entry):
            yield entry.stored.position, row_of(entry)


def counts(entry: Labeled) -> bool:
    """Whether a recipe reads the item."""
    return not (entry.stored.retired or entry.withdrawn or entry.waits) and bool(
        entry.votes or entry.final
    )


def row_of(entry: Labeled) -> dict[str, Any]:
    """The row of an item."""
    settled = entry.adjudicated is not None or entry.stored.item.gold is not None
    votes = [_vote(vote) for vote in entry.votes]
    final = {"final": entry.final} if settled else {}
    gold = {"gold": True} if entry.stored.item.gold is not None else {}
    return {
        "feedback": VERSION,
        "item": plain_item(entry.stored.item),
        "votes": votes,
        **final,
        **gold,
    }


def plain_item(item: Item) -> dict[str, Any]:
    """What an item asks, and where it is from, as JSON: no empty fields, nothing that only the
    store needs.
    """
    fields = {name: listed(getattr(item, name)) for name in PLAIN}
    fields["origins"] = fields["origins"] if any(item.origins) else []
    return {
        name: value for name, value in fields.items() if value or name in ("prompt", "responses")
    }


def store_digest(path: Path) -> str:
    """SHA-256 of what a recipe reads from a store: of its items and of the events that count.

    The bytes of the file say nothing: the newest labels may still be in the log next to it.
    """
    digest = hashlib.sha256()
    with Store.open(path, write=False) as store:
        rows = store.rows(
            "SELECT id, content, gold, retired, batch, license FROM items ORDER BY position"
        )
        rows += store.rows("SELECT uuid FROM current WHERE kind = 'label' ORDER BY uuid")
        decisive = "kind IN ('adjudicate', 'flag', 'consent')"
        rows += store.rows(f"SELECT uuid FROM effective WHERE {decisive} ORDER BY kind, uuid")
    for row in rows:
        digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


def _vote(vote: Vote) -> dict[str, Any]:
    facts = {
        "annotator": vote.annotator,
        "label": vote.label,
        "created": vote.created,
        "seconds": vote.seconds,
    }
    return {name: value for name, value in facts.items() if value is not None}
