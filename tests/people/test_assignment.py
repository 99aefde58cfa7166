"""Who labels what next: leases, overlap, gold items, and a blind, balanced order of the
responses.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats
from stores import Clock, event, opened, pair, ranking

from alignkit_plugins.people.assignment import (
    GOLD_RATE,
    Assignment,
    next_item,
    order_of,
    progress,
)
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.store import Store


def pairs(count: int) -> list[Item]:
    return [pair(f"prompt {index}") for index in range(count)]


def given(store: Store, who: str) -> Assignment:
    found = next_item(store, who)
    assert found is not None
    return found


def answer(store: Store, who: str) -> Item:
    """Label what comes next, and return it."""
    found = given(store, who)
    store.submit(event(found.stored.item, who=who, order=found.order, seconds=4))
    return found.stored.item


def test_items_come_by_priority_then_in_order_and_end(tmp_path: Path) -> None:
    items = [pair("a", author="ann"), pair("b", priority=2.0), pair("c", priority=1.0), pair("d")]
    with opened(tmp_path, *items) as store:
        assert given(store, "ann") == given(store, "ann")  # as a reloaded page shows it
        assert [answer(store, "ann").prompt[0]["content"] for _ in items] == ["b", "c", "a", "d"]
        assert next_item(store, "ann") is None
        with pytest.raises(BadLabel, match="annotator's name"):
            next_item(store, "\x07")


def test_a_leased_item_goes_to_nobody_else_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, *pairs(2), clock=clock) as store:
        first, second = given(store, "ann").stored.item, given(store, "bob").stored.item
        assert first.id != second.id
        clock.wait(590)
        assert next_item(store, "eve") is None
        clock.wait(10)
        assert given(store, "eve").stored.item.id == first.id
        clock.wait(590)
        given(store, "eve")  # which renews her lease
        clock.wait(20)
        assert given(store, "joe").stored.item.id == second.id
        store.put(second, wanted=1, retired=True)
        assert next_item(store, "joe") is None


def test_overlap_is_the_number_of_annotators(tmp_path: Path) -> None:
    with opened(tmp_path, pair("twice"), wanted=2) as store:
        given(store, "bob")
        answer(store, "ann")
        assert next_item(store, "eve") is None  # bob has the lease
        store.add([pair("thrice")], 3)
        seen = {who: 0 for who in ("ann", "bob", "eve", "joe")}
        for who in seen:
            while next_item(store, who) is not None:
                answer(store, who)
                seen[who] += 1
        assert list(seen.values()) == [1, 2, 1, 0]
        assert [stored.labels for stored in store.items()] == [2, 3]


def test_a_skipped_or_flagged_item_goes_to_others(tmp_path: Path) -> None:
    with opened(tmp_path, *pairs(2)) as store:
        first = given(store, "ann").stored.item
        store.submit(event(first, {"reason": "unclear"}, kind="skip"))
        second = given(store, "ann").stored.item
        assert second.id != first.id
        store.submit(event(second, {"note": "a private address"}, kind="flag"))
        assert next_item(store, "ann") is None
        assert given(store, "bob").stored.item.id == first.id


def test_gold_items_come_at_their_rate_to_everyone(tmp_path: Path) -> None:
    gold = [pair(f"gold {index}", gold={"better": 0}) for index in range(30)]
    with opened(tmp_path, *pairs(310), *gold) as store:
        for who in ("ann", "bob"):
            found = [answer(store, who) for _ in range(150)]
            count = sum(item.gold is not None for item in found)
            assert stats.binomtest(count, 150, GOLD_RATE).pvalue > 1e-3
        of_bob = 150 - count  # which wanted one label, and have it
        assert progress(store, "ann")[1] == 310 - of_bob + 30  # gold items count as others do


def test_every_place_of_a_ranking_is_equally_likely_and_differs_between_annotators() -> None:
    names = [ranking(f"prompt {index}").id for index in range(2000)]
    ann, bob = ([order_of(name, who, 4).index(0) for name in names] for who in ("ann", "bob"))
    for places in (ann, bob):
        assert stats.chisquare([places.count(place) for place in range(4)]).pvalue > 0.01
    same = sum(a == b for a, b in zip(ann, bob, strict=True))
    assert stats.binomtest(same, 2000, 1 / 4).pvalue > 0.01


def test_progress_counts_what_stands_and_what_is_left_for_me(tmp_path: Path) -> None:
    with opened(tmp_path, *pairs(4), wanted=2) as store:
        item = answer(store, "ann")
        answer(store, "ann")
        skipped = given(store, "ann").stored.item
        store.submit(event(skipped, {"reason": "no idea"}, kind="skip"))
        store.submit(event(item, who="bob"))
        assert progress(store, "ann") == (2, 3) and progress(store, "bob") == (1, 4)
        store.add([pair("once")])
        assert progress(store, "ann") == (2, 4)
        while given(store, "bob").stored.wanted == 2:
            answer(store, "bob")
        assert progress(store, "ann") == (2, 3)  # bob has the lease
        store.put(item, wanted=2, retired=True)
        assert progress(store, "ann") == (1, 2)
