"""What counts: the labels that stand, in the order of an item's responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from stores import event, opened, pair, reviewed, side

from alignkit_plugins.people.labels import agrees, canonical, checked
from alignkit_plugins.people.votes import consents, labeled


@pytest.mark.parametrize(
    ("payload", "order", "label"),
    [
        (side("A"), (1, 0), {"better": 1, "margin": "better"}),
        ({"ranks": [4, 1, 1]}, (2, 0, 1), {"ranks": [1, 1, 2]}),
        ({"good": True}, (0,), {"good": True}),
        (
            reviewed([2, 1, 2], [3, 7, 4], ["harmful", "invented"]),
            (2, 0, 1),
            reviewed([1, 2, 2], [7, 4, 3], [], [], ["harmful", "invented"]),
        ),
    ],
)
def test_labels_are_compared_in_the_items_own_order(payload: Any, order: Any, label: Any) -> None:
    assert canonical(payload, order) == label


def test_a_checked_label_has_no_empty_keys() -> None:
    assert checked("label", side("A", note=""), "pair", 2) == side("A")


# A label, a gold one, and whether they agree
AGREE = yaml.safe_load("""
- [{better: 0, margin: unsure}, {better: 0}, true]
- [{better: 1, margin: unsure}, {better: 0}, false]
- [{ranks: [1, 1, 2]}, {ranks: [1, 2, 3]}, true]
- [{ranks: [2, 1, 3]}, {ranks: [1, 2, 3]}, false]
- [{good: false}, {good: true}, false]
- [{good: false}, {good: false}, true]
- [{text: a}, {text: b}, null]
""")


@pytest.mark.parametrize(("label", "gold", "expected"), AGREE)
def test_what_agrees_with_gold(label: Any, gold: Any, expected: bool | None) -> None:
    assert agrees(label, gold) is expected


def test_a_label_replaces_a_skip_and_a_flag_holds_until_it_is_undone(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        store.submit(event(item, {"reason": "I know the author"}, kind="skip"))
        (entry,) = labeled(store)
        assert (entry.votes, entry.skips, entry.stored.labels) == ({}, 1, 0)
        store.submit(event(item))
        flag = store.submit(event(item, {"note": "personal data"}, kind="flag", who="bob"))
        assert store.last("bob") == flag
        (entry,) = labeled(store)
        assert (len(entry.votes), entry.skips, len(entry.flags), entry.counts) == (1, 0, 1, False)
        store.submit(event(item, {"of": flag.uuid}, kind="undo", who="bob"))
        assert labeled(store)[0].counts


def test_labels_of_people_who_withdrew_consent_do_not_count(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        for who in ("eve", "bob", "ann"):
            store.submit(event(item, who=who))
        for who, granted in (("ann", True), ("ann", False), ("bob", True), ("eve", False)):
            store.submit(event(None, {"granted": granted, "terms": "v1"}, kind="consent", who=who))
        agreed = {who: said.granted for who, said in consents(store).items()}
        assert agreed == {"ann": False, "bob": True, "eve": False}
        # Eve only does not share
        assert list(labeled(store)[0].votes) == ["bob", "eve"]
        store.add([pair("Ann's", author="ann")])
        store.submit(event(pair("Ann's"), who="bob"))
        assert [entry.counts for entry in labeled(store)] == [True, False]
