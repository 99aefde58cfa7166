"""What counts: the labels that stand, what is disputed, and the final label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stores import event, opened, pair, ranking, turn

from alignkit.data.group import LEVELS
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import agrees, canonical, checked, degree, level
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import Labeled, consents, labeled


def only(store: Store) -> Labeled:
    (entry,) = labeled(store)
    return entry


def choice(better: int, margin: str, **more: Any) -> dict[str, Any]:
    return {"better": better, "margin": margin, **more}


def test_labels_are_compared_in_the_items_own_order() -> None:
    assert canonical({"side": "A", "margin": "better"}, (1, 0)) == choice(1, "better")
    assert canonical({"ranks": [4, 1, 1]}, (2, 0, 1)) == {"ranks": [1, 1, 2]}
    assert canonical({"scores": [1, 7, 3]}, (2, 0, 1)) == {"scores": [7, 3, 1]}
    assert canonical({"good": True}, (0,)) == {"good": True}


def test_a_checked_label_has_no_empty_keys() -> None:
    label = {"side": "A", "margin": "better"}
    assert checked("label", {**label, "note": ""}, "pair", 2) == label


def test_degrees_are_symmetric() -> None:
    assert [degree(choice(0, name)) for name in LEVELS] == [-4, -3, -2, -1]
    assert [degree(choice(1, name)) for name in LEVELS] == [4, 3, 2, 1]
    assert [level(size) for size in (0, 1, 1.4, 2.1, 3, 4)] == [
        "unsure", "unsure", "unsure", "slightly", "better", "significantly",
    ]  # fmt: skip


def test_what_agrees_with_gold() -> None:
    assert agrees(choice(0, "unsure"), {"better": 0})
    assert not agrees(choice(1, "unsure"), {"better": 0})
    assert agrees({"ranks": [1, 1, 2]}, {"ranks": [1, 2, 3]})
    assert not agrees({"ranks": [2, 1, 3]}, {"ranks": [1, 2, 3]})
    assert agrees({"text": "a"}, {"text": "b"}) is None


def test_a_skip_replaces_a_label(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        store.submit(event(item, {"reason": "I know the author"}, kind="skip"))
        entry = only(store)
        assert entry.votes == [] and entry.skips == 1
        store.submit(event(item))
        entry = only(store)
        assert len(entry.votes) == 1 and entry.skips == 0


def test_a_flagged_item_does_not_count_until_the_flag_is_undone(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        flag = store.submit(event(item, {"note": "personal data"}, kind="flag", who="bob"))
        assert only(store).flags == 1 and not only(store).counts
        store.submit(event(item, {"of": flag.uuid}, kind="undo", who="bob"))
        assert only(store).counts


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
        (write, {"text": "An answer."}),
        (thumb, {"good": False}),
    ]
    with opened(tmp_path, *(item for item, _ in items)) as store:
        for item, payload in items:
            store.submit(event(item, payload))
        assert [entry.labels for entry in labeled(store)] == [
            [{"ranks": [2, 1, 1, 3]}],
            *([label] for _, label in items[1:]),
        ]
        assert labeled(store, [write.id])[0].stored.item == write
