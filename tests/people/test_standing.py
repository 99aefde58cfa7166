"""What counts: the labels that stand, what is disputed, and the final label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, scores, turn

from alignkit.data.group import LEVELS
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import agrees, canonical, checked, degree, displayed, level
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import Labeled, consents, disputes, labeled, majority


def only(store: Store) -> Labeled:
    (entry,) = labeled(store)
    return entry


def choice(better: int, margin: str, **more: Any) -> dict[str, Any]:
    return {"better": better, "margin": margin, **more}


def test_labels_are_compared_in_the_items_own_order() -> None:
    assert canonical({"side": "A", "margin": "better"}, (1, 0)) == choice(1, "better")
    assert canonical({"ranks": [4, 1, 1]}, (2, 0, 1)) == {"ranks": [1, 1, 2]}
    given = {"scores": [{"helpful": 1}, {"helpful": 7}]}
    assert canonical(given, (1, 0)) == {"scores": [{"helpful": 7}, {"helpful": 1}]}
    assert canonical({"good": True}, (0,)) == {"good": True}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_displayed_is_the_opposite_of_canonical(order: tuple[int, ...]) -> None:
    label = {"ranks": [2, 1, 3], "note": "?"}
    assert canonical(displayed(label, order), order) == label
    two = order[:2] if set(order[:2]) == {0, 1} else (1, 0)
    assert canonical(displayed(choice(1, "unsure"), two), two) == choice(1, "unsure")


def test_a_checked_label_has_no_empty_keys() -> None:
    assert checked(
        "label", {"side": "A", "margin": "better", "note": "", "safety": None}, "pair", 2
    ) == {
        "side": "A",
        "margin": "better",
    }


def test_degrees_are_symmetric() -> None:
    assert [degree(choice(0, name)) for name in LEVELS] == [-4, -3, -2, -1]
    assert [degree(choice(1, name)) for name in LEVELS] == [4, 3, 2, 1]
    assert [level(size) for size in (0, 1, 1.4, -2.1, 3, 4)] == [
        "unsure", "unsure", "unsure", "slightly", "better", "significantly",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], None),
        ([choice(0, "better")], choice(0, "better")),
        # -3 -4 +1
        ([choice(0, "better"), choice(0, "significantly"), choice(1, "unsure")], choice(0, "slightly")),
        ([choice(0, "unsure"), choice(0, "unsure"), choice(1, "significantly")], choice(0, "unsure")),
        # As many, so the mean: +1
        ([choice(0, "unsure"), choice(1, "better")], choice(1, "unsure")),
        ([choice(0, "better"), choice(1, "better")], None),
        ([choice(0, "better", safety="both_safe"), choice(0, "better", safety="both_unsafe"),
          choice(0, "better", safety="both_unsafe")], choice(0, "better", safety="both_unsafe")),
    ],
)  # fmt: skip
def test_the_majority_of_pairs(labels: Any, expected: Any) -> None:
    assert majority(labels) == expected


def test_the_majority_of_other_tasks() -> None:
    assert majority([{"ranks": [1, 2, 3]}, {"ranks": [2, 1, 3]}]) == {"ranks": [1, 1, 2]}
    assert majority([{"ranks": [1, 2, 3]}, {"ranks": [1, 3, 2]}, {"ranks": [1, 2, 3]}]) == {
        "ranks": [1, 2, 3]
    }
    rated = [
        {"scores": [{"helpful": 7}, {"helpful": 2}]},
        {"scores": [{"helpful": 4}, {"helpful": 2}]},
    ]
    assert majority(rated) == {"scores": [{"helpful": 5.5}, {"helpful": 2}]}
    assert majority([{"good": True}, {"good": True}, {"good": False}]) == {"good": True}
    assert majority([{"good": True}, {"good": False}]) is None
    assert majority([{"text": "a"}, {"text": "b"}]) is None


def test_what_agrees_with_gold() -> None:
    assert agrees(choice(0, "unsure"), {"better": 0})
    assert not agrees(choice(1, "unsure"), {"better": 0})
    assert agrees({"ranks": [1, 1, 2]}, {"ranks": [1, 2, 3]})
    assert not agrees({"ranks": [2, 1, 3]}, {"ranks": [1, 2, 3]})
    assert agrees({"scores": [{"a": 5}, {"a": 3}]}, {"scores": [{"a": 6}, {"a": 5}]})
    assert not agrees({"scores": [{"a": 4}, {"a": 5}]}, {"scores": [{"a": 6}, {"a": 5.5}]})
    assert agrees({"text": "a"}, {"text": "b"}) is None


def test_a_skip_replaces_a_label(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        store.submit(event(item, {"reason": "I know the author"}, kind="skip"))
        entry = only(store)
        assert entry.votes == [] and entry.skips == [("ann", "I know the author")]
        store.submit(event(item))
        entry = only(store)
        assert len(entry.votes) == 1 and entry.skips == []


def test_a_flagged_item_waits_until_it_is_adjudicated(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        flag = store.submit(event(item, {"note": "personal data"}, kind="flag", who="bob"))
        entry = only(store)
        assert entry.final is None and entry.flags == [("bob", "personal data")] and disputes(store)
        store.submit(event(item, {"of": flag.uuid}, kind="undo", who="bob"))
        assert only(store).final == choice(0, "better")
        store.submit(event(item, {"note": "personal data"}, kind="flag", who="bob"))
        store.submit(
            event(item, {"side": "B", "margin": "slightly"}, kind="adjudicate", who="chief")
        )
        assert only(store).final == choice(1, "slightly")
        assert disputes(store) == []


def test_an_adjudicated_label_leaves_the_votes(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        store.submit(event(item, {"side": "B", "margin": "better"}, who="bob"))
        assert only(store).final is None and only(store).disputed
        store.submit(
            event(
                item,
                {"side": "A", "margin": "unsure"},
                kind="adjudicate",
                who="chief",
                order=(1, 0),
            )
        )
        entry = only(store)
        assert entry.final == choice(1, "unsure") and not entry.disputed
        assert [vote.annotator for vote in entry.votes] == ["ann", "bob"]


def test_labels_of_people_who_withdrew_consent_do_not_count(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        for who in ("ann", "bob", "eve"):
            store.submit(event(item, who=who))
        for who, granted in (("ann", True), ("ann", False), ("bob", True), ("eve", False)):
            store.submit(event(None, {"granted": granted, "terms": "v1"}, kind="consent", who=who))
        assert consents(store) == {"ann": False, "bob": True, "eve": False}
        # Eve only does not share
        assert [vote.annotator for vote in only(store).votes] == ["bob", "eve"]


def test_items_of_every_task_are_labeled(tmp_path: Path) -> None:
    write, thumb = (
        Item("demonstration", (turn("Write"),)),
        Item("thumb", (turn("Good?"),), ("yes",)),
    )
    items: list[tuple[Item, Any]] = [
        (ranking(), {"ranks": [2, 1, 1, 4]}),
        (
            scores(),
            {"scores": [{"helpful": helpful, "truthful": 4, "harmless": 7} for helpful in (7, 1)]},
        ),
        (write, {"text": "An answer."}),
        (thumb, {"good": False}),
    ]
    with opened(tmp_path, *(item for item, _ in items)) as store:
        for item, payload in items:
            store.submit(event(item, payload))
        assert [entry.final for entry in labeled(store)] == [
            {"ranks": [2, 1, 1, 3]},
            *(label for _, label in items[1:]),
        ]
        assert labeled(store, [write.id])[0].stored.item == write
