"""The gold items that an annotator answers before the first item whose label counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from alignkit_plugins.people.labels import agrees, canonical
from alignkit_plugins.people.records import stored_of
from alignkit_plugins.people.store import Store

_ANSWERS = (
    "SELECT items.*, e.kind, e.payload, e.display_order, (SELECT a.payload || char(10) || a.display_order "
    "FROM effective AS a WHERE a.item = items.id AND a.kind = 'adjudicate' ORDER BY a.created DESC LIMIT 1) AS settled "
    "FROM items JOIN current AS c ON c.item = items.id AND c.annotator = ? AND c.occasion = 0 "
    "JOIN events AS e ON e.uuid = c.uuid WHERE gold IS NOT NULL AND retired = 0 ORDER BY c.created LIMIT ?"
)


@dataclass(frozen=True)
class Qualification:
    """How an annotator answered the first gold items. asked: how many they are. least: the share that must be right."""

    asked: int
    answered: int
    right: int
    least: float

    @property
    def passed(self) -> bool:
        """Whether the annotator may label what counts."""
        # A share, as `reliability` takes it: 0.56 * 25 is more than 14.
        return self.answered >= self.asked and (not self.asked or self.right / self.answered >= self.least)

    @property
    def failed(self) -> bool:
        """Whether the annotator labels nothing more."""
        return self.answered >= self.asked and not self.passed


def qualification(store: Store, annotator: str) -> Qualification:
    """How far the annotator is. A skipped item is not right, and neither is a contested one until it is adjudicated."""
    plan, right = store.plan, 0
    rows = store.rows(_ANSWERS, annotator, plan.qualify)
    for row in rows:
        item = stored_of(row).item
        gold = item.gold or {}
        if row["settled"] is not None:
            payload, order = row["settled"].split("\n")
            gold = canonical(json.loads(payload), json.loads(order))
        if row["kind"] == "label":
            said = canonical(json.loads(row["payload"]), json.loads(row["display_order"]))
            right += agrees(item.task, said, gold) is not False
    return Qualification(plan.qualify, len(rows), right, plan.min_gold)
