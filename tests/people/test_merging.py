"""Stores of several people become one, without duplicates, and without guessing where they
contradict each other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stores import event, opened, pair, ranking

from alignkit.errors import DataError
from alignkit_plugins.people.sharing import merge
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled


def two(folder: Path) -> tuple[Store, Store]:
    """Ann's and Bob's stores of the same three items and one of each alone."""
    shared = [pair("one"), pair("two"), ranking("three")]
    ann = opened(folder, *shared, pair("ann's"), name="ann.feedback")
    bob = opened(folder, *shared[::-1], pair("bob's"), name="bob.feedback")
    for store, who, side in ((ann, "ann", "A"), (bob, "bob", "B")):
        for item in (shared[0], pair(f"{who}'s")):
            store.submit(event(item, {"side": side, "margin": "better"}, who=who))
        store.add_guidelines(f"as {who} sees it")
    return ann, bob


def votes(store: Store) -> dict[str, dict[str, int]]:
    return {
        entry.stored.item.prompt[0]["content"]: {
            vote.annotator: vote.label["better"] for vote in entry.votes
        }
        for entry in labeled(store)
    }


def test_items_are_united_and_all_labels_kept(tmp_path: Path) -> None:
    ann, bob = two(tmp_path)
    done = merge(ann, bob)
    assert (done["items"], done["events"]) == (1, 2)
    assert votes(ann) == {
        "one": {"ann": 0, "bob": 1},
        "two": {},
        "three": {},
        "ann's": {"ann": 0},
        "bob's": {"bob": 1},
    }
    assert [stored.labels for stored in ann.items()] == [2, 0, 0, 1, 1]
    assert len(ann.guidelines()) == 2
    assert len(bob.events()) == 2


def test_the_order_of_merging_does_not_matter(tmp_path: Path) -> None:
    ann, bob = two(tmp_path)
    for name, order in (("x", (ann, bob)), ("y", (bob, ann))):
        with opened(tmp_path, name=f"{name}.feedback") as store:
            for other in order:
                merge(store, other)
    with Store.open(tmp_path / "x.feedback") as x, Store.open(tmp_path / "y.feedback") as y:
        assert x.events() == y.events()
        assert votes(x) == votes(y)


def test_an_undo_of_another_store_counts(tmp_path: Path) -> None:
    ann, bob = two(tmp_path)
    merge(bob, ann)
    last = ann.last("ann")
    assert last is not None
    ann.submit(event(pair("ann's"), {"of": last.uuid}, kind="undo"))
    merge(bob, ann)
    assert votes(bob)["ann's"] == {}


def test_what_one_store_does_not_know_is_filled_in(tmp_path: Path) -> None:
    plain, rich = (
        pair(),
        pair(license="MIT", gold={"better": 1}, meta={"language": "de"}, origins=("a", "b")),
    )
    with (
        opened(tmp_path, plain, name="x.feedback") as x,
        opened(tmp_path, rich, name="y.feedback") as y,
    ):
        merge(x, y)
        (stored,) = x.items()
        assert stored.item == rich
        y.ask([replace(rich, gold={"better": 0})], "")
        merge(x, y)
        assert x.items()[0].item.gold == {"better": 1}


def test_contradictions_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    ann, bob = two(tmp_path)
    for store, license in ((bob, "MIT"), (ann, "CC0-1.0")):
        store.add([pair("three", license=license)])
    with pytest.raises(
        DataError, match=r"bob.feedback does not fit .*CC0-1.0 and MIT.*Nothing was merged"
    ):
        merge(ann, bob)
    assert len(ann.events()) == 2


def test_an_event_that_says_two_things_is_named(tmp_path: Path) -> None:
    ann, bob = two(tmp_path)
    first = bob.events()[0]
    ann.submit(event(pair("one"), who="eve", uuid=first.uuid))
    with pytest.raises(DataError, match=f"event {first.uuid} says two things"):
        merge(ann, bob)


def test_a_retired_item_stays_retired(tmp_path: Path) -> None:
    old = pair(batch="a.jsonl")
    with (
        opened(tmp_path, old, name="x.feedback") as x,
        opened(tmp_path, old, name="y.feedback") as y,
    ):
        y.ask([], "a.jsonl")
        merge(x, y)
        assert [stored.retired for stored in x.items()] == [True]
