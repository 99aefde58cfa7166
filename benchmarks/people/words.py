"""Pairs with a truth that is known: a response is four words, each word has a value, and the larger sum is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignkit_plugins.people.items import Item

WORDS = ("good", "fine", "nice", "okay", "poor", "weak", "bad", "awful")
VALUES = dict(zip(WORDS, np.linspace(1, -1, len(WORDS)).tolist(), strict=True))
LENGTH = 4  # words in a response
PROMPT = "How was it?"


def pairs(count: int, seed: int) -> list[Item]:
    """Different pairs of responses that are never equally good."""
    rng = np.random.default_rng(seed)
    found: dict[str, Item] = {}
    while len(found) < count:
        first, second = (" ".join(WORDS[index] for index in row) for row in rng.integers(0, len(WORDS), (2, LENGTH)))
        item = Item("pair", ({"role": "user", "content": PROMPT},), (first, second), license="CC0-1.0")
        if abs(gap(item)) > 1e-9:
            found[item.id] = item
    return list(found.values())


def value(response: str) -> float:
    """How good a response is."""
    return sum(VALUES[word] for word in response.split())


def gap(item: Item) -> float:
    """How much better the first response is."""
    first, second = item.responses
    return value(str(first)) - value(str(second))


def word_counts(items: Sequence[Item]) -> NDArray[np.float64]:
    """What one who knows the words sees: how often each is in the first response, minus the second: [pairs, words]."""
    return _differences(items, str.split, WORDS)


def placed_words(items: Sequence[Item]) -> NDArray[np.float64]:
    """What one sees who does not know that places do not matter: word by place: [pairs, places · words]."""
    return _differences(items, _placed, [f"{place} {word}" for place in range(LENGTH) for word in WORDS])


def _placed(response: str) -> list[str]:
    return [f"{place} {word}" for place, word in enumerate(response.split())]


def _differences(items: Sequence[Item], parts: Callable[[str], list[str]], names: Sequence[str]) -> NDArray[np.float64]:
    counts = [[Counter(parts(str(response))) for response in item.responses] for item in items]
    return np.array([[first[name] - second[name] for name in names] for first, second in counts], dtype=float)
