"""People who label what a store asks, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit_plugins.people.assignment import Assignment, next_item
from alignkit_plugins.people.store import Store
from tests.stores import event, reviewed, side


def prefers_longer(given: Assignment) -> dict[str, Any]:
    """A simulated person, who sees the responses in the order shown."""
    item = given.stored.item
    shown = [len(str(item.responses[index])) for index in given.order] or [0]
    return {
        "pair": side("AB"[shown[0] < shown[-1]], "significantly"),
        "safety": side("A", safety="both_safe"),
        "ranking": {"ranks": [sorted(shown, reverse=True).index(size) + 1 for size in shown]},
        "review": reviewed([1] * len(shown), [4] * len(shown)),
        "demonstration": {"text": "An answer."},
        "thumb": {"good": shown[0] % 2 == 0},
    }[item.task]


def label(
    store: Path,
    who: str = "ann",
    most: int = 100,
    answer: Callable[[Assignment], dict[str, Any]] = prefers_longer,
) -> int:
    """Let a person label what the page would show, until nothing is left. Returns the number of
    labels.
    """
    done = 0
    with Store.open(store) as opened:
        while done < most and (given := next_item(opened, who)) is not None:
            opened.submit(
                event(given.stored.item, answer(given), who=who, order=given.order, seconds=3.0)
            )
            done += 1
    return done
