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


def several(task: str, text: str, count: int, **more: Any) -> Item:
    return Item(task, (turn(text),), tuple(f"answer {index}" for index in range(count)), **more)


def ranking(text: str = "Rank", count: int = 4, **more: Any) -> Item:
    return several("ranking", text, count, **more)


def review(text: str = "Review", count: int = 3, **more: Any) -> Item:
    return several("review", text, count, **more)


def reviewed(ranks: list[int], scores: list[int], *flags: list[str]) -> dict[str, Any]:
    """The label of a review. flags: of the first answers."""
    rest: list[list[str]] = [[]] * (len(ranks) - len(flags))
    return {"ranks": ranks, "scores": scores, "flags": [*flags, *rest]}


def side(letter: str, margin: str = "better", **more: Any) -> dict[str, Any]:
    """The label of a pair."""
    return {"side": letter, "margin": margin, **more}


def event(
    item: Item | None, payload: Any = None, *, who: str = "ann", kind: str = "label", **more: Any
) -> Event:
    name = more.pop("uuid", None) or str(uuid.uuid4())
    about = None if item is None else item.id
    return Event(name, who, kind, side("A") if payload is None else payload, about, **more)


class Clock:
    """A clock that moves a second per look, and further when asked."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.wait(1)
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def opened(
    folder: Path, *items: Item, name: str = "labels.feedback", wanted: int = 1, **more: Any
) -> Store:
    """A new store with these items, which waits for no disk."""
    store = Store.open(folder / name, new=True, clock=more.pop("clock", None) or Clock())
    store.connection.execute("PRAGMA synchronous = OFF")
    store.add(items, wanted)
    return store
