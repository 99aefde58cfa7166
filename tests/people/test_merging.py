"""Stores of several people become one, without duplicates, and without guessing where they
contradict each other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, side

from alignkit.errors import DataError
from alignkit_plugins.people.sharing import merge
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled


@pytest.fixture
def two(tmp_path: Path) -> tuple[Store, Store]:
    """Ann's and Bob's stores of the same three items and one of each alone."""
    shared = [pair("one"), pair("two"), ranking("three")]
    ann = opened(tmp_path, *shared, pair("ann's"), name="ann.feedback")
    bob = opened(tmp_path, *shared[::-1], pair("bob's"), name="bob.feedback", wanted=3)
    for store, who, letter in ((ann, "ann", "A"), (bob, "bob", "B")):
        for item in (shared[0], pair(f"{who}'s")):
            store.submit(event(item, side(letter), who=who))
        store.add_guidelines(f"as {who} sees it")
    return ann, bob


def votes(store: Store) -> dict[str, Any]:
    found = {}
    for entry in labeled(store):
        given = {who: label["better"] for who, label in entry.votes.items()}
        found[str(entry.item.prompt[0]["content"])] = given
    return found


def test_items_are_united_and_all_labels_kept_in_either_order(
    two: tuple[Store, Store], tmp_path: Path
) -> None:
    both = [opened(tmp_path, name=f"{name}.feedback") for name in "xy"]
    for store, order in zip(both, (two, two[::-1]), strict=True):
        for other in order:
            merge(store, other)
    x, y = both
    assert x.events() == y.events() and votes(x) == votes(y)
    ann, bob = two
    assert merge(ann, bob) == {"items": 1, "events": 2} and merge(ann, bob) == {}
    assert [stored.wanted for stored in ann.items()] == [1, 1, 1, 1, 3]
    one = {"ann": 0, "bob": 1}
    expected = {"one": one, "two": {}, "three": {}, "ann's": {"ann": 0}, "bob's": {"bob": 1}}
    assert votes(ann) == votes(x) == expected
    assert [stored.labels for stored in ann.items()] == [2, 0, 0, 1, 1]
    assert len(ann.guidelines()) == 2
    assert len(bob.events()) == 2


def test_an_undo_of_another_store_counts(two: tuple[Store, Store]) -> None:
    ann, bob = two
    merge(bob, ann)
    last = ann.last("ann")
    assert last is not None
    ann.submit(event(pair("ann's"), {"of": last.uuid}, kind="undo"))
    merge(bob, ann)
    assert votes(bob)["ann's"] == {}


def test_what_one_store_does_not_know_is_filled_in(tmp_path: Path) -> None:
    gold = {"better": 1}
    rich = pair(license="MIT", gold=gold, meta={"language": "de"}, origins=("a", "b"))
    with (
        opened(tmp_path, pair(), name="x.feedback") as x,
        opened(tmp_path, rich, name="y.feedback") as y,
    ):
        merge(x, y)
        assert [stored.item for stored in x.items()] == [rich]
        y.ask([replace(rich, gold={"better": 0})], "")
        merge(x, y)
        assert x.items()[0].item.gold == gold
        y.ask([], "")
        merge(x, y)
        assert [stored.retired for stored in x.items()] == [True]


def test_contradictions_are_named_and_nothing_is_written(two: tuple[Store, Store]) -> None:
    ann, bob = two
    for store, license in ((bob, "MIT"), (ann, "CC0-1.0")):
        store.add([pair("three", license=license)])
    fault = r"bob.feedback does not fit .*CC0-1.0 and MIT.*Nothing was merged"
    with pytest.raises(DataError, match=fault):
        merge(ann, bob)
    first = bob.events()[0]
    ann.submit(event(pair("one"), who="eve", uuid=first.uuid))
    with pytest.raises(DataError, match=f"event {first.uuid} says two things"):
        merge(ann, bob)
    assert len(ann.events()) == 3
