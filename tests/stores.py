"""Items, events and a clock for the tests of stores."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Event, Store


def turn(text: str) -> Any:
    return {"role": "user", "content": text}


def pair(text: str = "Hi", first: str = "Hello!", second: str = "What?", **more: Any) -> Item:
    return Item("pair", (turn(text),), (first, second), **more)


def ranking(text: str = "Rank", count: int = 4, **more: Any) -> Item:
    return Item(
        "ranking", (turn(text),), tuple(f"answer {index}" for index in range(count)), **more
    )


def review(text: str = "Review", count: int = 3, **more: Any) -> Item:
    return Item("review", (turn(text),), tuple(f"answer {index}" for index in range(count)), **more)


def reviewed(ranks: list[int], scores: list[int], *flags: list[str]) -> dict[str, Any]:
    """The label of a review. flags: of the first answers."""
    rest: list[list[str]] = [[]] * (len(ranks) - len(flags))
    return {
        "ranks": ranks,
        "scores": scores,
        "flags": [*flags, *rest],
    }


def event(
    item: Item | None, payload: Any = None, *, who: str = "ann", kind: str = "label", **more: Any
) -> Event:
    payload = {"side": "A", "margin": "better"} if payload is None else payload
    name = more.pop("uuid", None) or str(uuid.uuid4())
    return Event(name, who, kind, payload, None if item is None else item.id, **more)


class Clock:
    """A clock that moves a second per look, and further when asked."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def opened(
    folder: Path, *items: Item, name: str = "labels.feedback", wanted: int = 1, **more: Any
) -> Store:
    store = Store.open(folder / name, new=True, clock=more.pop("clock", None) or Clock())
    store.add(items, wanted)
    return store
