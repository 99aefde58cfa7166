"""People who label everything that a store asks, for tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignkit_plugins.people.assignment import next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Event, Store

Decide = Callable[[Item], Mapping[str, Any] | str]


def label_all(path: Path, decide: Decide, who: str = "ann") -> list[Item]:
    """Label what is left, and return the items.

    decide: says of an item who wrote the better answer, or a payload with `by` in place of `side`, or `skip` or `flag`.
    """
    done = []
    with Store.open(path) as store:
        while (given := next_item(store, who)) is not None:
            item = given.stored.item
            said = decide(item)
            payload: dict[str, Any] = {"margin": "better", **({"by": said} if isinstance(said, str) else said)}
            shown = [item.origins[index] for index in given.order]
            kind = payload["by"] if payload["by"] in ("skip", "flag") else "label"
            if kind == "label":
                payload["side"] = "AB"[shown.index(payload.pop("by"))]
            else:
                payload = {"reason": "cannot say"} if kind == "skip" else {"note": "is broken"}
            seen = {"revision": given.stored.revision, "order": given.order, "occasion": given.occasion}
            store.submit(Event(str(uuid.uuid4()), who, kind, payload, item.id, seconds=3.0, **seen))
            done.append(item)
    return done


def number(item: Item) -> int:
    """The number of the prompt, which is its last word."""
    return int(item.prompt[-1]["content"].split()[-1])
