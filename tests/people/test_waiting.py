"""A run asks people: items in a store, and a run that stops until they have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import event, pair

from alignkit.errors import DataError, StageWaits
from alignkit_plugins.people.assignment import next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.step import labels_of
from alignkit_plugins.people.store import VERSION, Store
from alignkit_plugins.people.votes import Labeled, labeled

THREE = [pair(f"question {index}") for index in range(3)]


def asked(place: Path, items: Sequence[Item] = THREE, **more: Any) -> list[Labeled]:
    stage = more.pop("stage", "labels")
    folder = more.pop("folder", place / stage)
    return labels_of(place / "labels.feedback", items, stage=stage, folder=folder, **more)


def missing(place: Path, items: Sequence[Item] = THREE, **more: Any) -> int:
    with pytest.raises(StageWaits) as waiting:
        asked(place, items, **more)
    return waiting.value.missing


def say(folder: Path, item: Item, payload: Any = None, **more: Any) -> None:
    with Store.open(folder / "labels.feedback") as store:
        store.submit(event(item, payload, **more))


def offered(folder: Path, who: str = "zoe") -> set[str]:
    """The questions that a new annotator would get."""
    found = set()
    with Store.open(folder / "labels.feedback") as store:
        while (given := next_item(store, who)) is not None:
            found.add(str(given.stored.item.prompt[0]["content"]))
            store.submit(event(given.stored.item, {"reason": "?"}, kind="skip", who=who))
    return found


def test_a_run_waits_until_all_items_are_labeled(tmp_path: Path) -> None:
    assert missing(tmp_path) == 3
    for count, item in enumerate(THREE[:2]):
        say(tmp_path, item)
        assert missing(tmp_path) == 2 - count
    say(tmp_path, THREE[2], {"side": "B", "margin": "slightly"})
    entries = asked(tmp_path)
    assert [entry.stored.item.id for entry in entries] == [item.id for item in THREE]
    assert [entry.labels[0]["better"] for entry in entries] == [0, 0, 1]


def test_each_item_needs_labels_of_different_people(tmp_path: Path) -> None:
    assert missing(tmp_path, annotators=2) == 6
    for item in THREE:
        say(tmp_path, item, who="ann")
    assert missing(tmp_path, annotators=2) == 3
    assert offered(tmp_path, "ann") == set()
    for item in THREE:
        say(tmp_path, item, who="bob")
    assert [len(entry.votes) for entry in asked(tmp_path, annotators=2)] == [2, 2, 2]


def test_flagged_and_skipped_items_do_not_keep_a_run_waiting(tmp_path: Path) -> None:
    missing(tmp_path)
    say(tmp_path, THREE[0])
    say(tmp_path, THREE[1], {"reason": "too long"}, kind="skip")
    say(tmp_path, THREE[2], {"note": "nonsense"}, kind="flag")
    assert [bool(entry.votes) for entry in asked(tmp_path)] == [True, False, False]


def test_labels_of_an_earlier_version_do_not_count_and_stay(tmp_path: Path) -> None:
    missing(tmp_path)
    for item in THREE:
        say(tmp_path, item)
    changed = [pair(f"question {index}", "Another!") for index in range(3)]
    assert missing(tmp_path, changed) == 3
    with Store.open(tmp_path / "labels.feedback") as store:
        assert [(len(entry.votes), entry.stored.retired) for entry in labeled(store)] == [
            (1, True)
        ] * 3 + [(0, False)] * 3
    assert len(asked(tmp_path)) == 3, (
        "the earlier version is asked again, and its labels count again"
    )
    with Store.open(tmp_path / "labels.feedback") as store:
        assert [stored.retired for stored in store.items()] == [False] * 3 + [True] * 3


def test_stages_and_runs_at_one_store_do_not_retire_each_others_items(tmp_path: Path) -> None:
    other = [pair("another question")]
    missing(tmp_path, THREE, folder=tmp_path / "one/labels")
    missing(tmp_path, other, folder=tmp_path / "two/labels")
    missing(tmp_path, THREE[:1], folder=tmp_path / "one/labels")
    with Store.open(tmp_path / "labels.feedback") as store:
        known = {str(s.item.prompt[0]["content"]): (s.item.batch, s.retired) for s in store.items()}
    assert known == {
        "question 0": ("one/labels", False),
        "question 1": ("one/labels", True),
        "question 2": ("one/labels", True),
        "another question": ("two/labels", False),
    }


def test_an_item_is_open_until_every_stage_that_asks_has_its_labels(tmp_path: Path) -> None:
    for _ in range(2):  # a run asks for all its stages, again and again
        assert missing(tmp_path, THREE[:1], stage="many", annotators=3) == 3
        assert missing(tmp_path, THREE[:1], stage="one") == 1
    say(tmp_path, THREE[0], who="ann")
    assert missing(tmp_path, THREE[:1], stage="many", annotators=3) == 2
    assert missing(tmp_path, THREE[:1], stage="many", annotators=3) == 2
    assert asked(tmp_path, THREE[:1], stage="one")
    assert offered(tmp_path, "bob") == {"question 0"}


def test_labels_of_somebody_who_withdraws_are_asked_of_others(tmp_path: Path) -> None:
    missing(tmp_path, THREE[:1])
    say(tmp_path, THREE[0], who="ann")
    with Store.open(tmp_path / "labels.feedback") as store:
        for granted in (True, False):
            store.submit(event(None, {"granted": granted}, kind="consent", who="ann"))
    assert offered(tmp_path, "bob") == set()
    assert missing(tmp_path, THREE[:1]) == 1
    assert offered(tmp_path, "ann") == set() and offered(tmp_path, "eve") == {"question 0"}
    say(tmp_path, THREE[0], who="bob")
    assert [vote.annotator for vote in asked(tmp_path, THREE[:1])[0].votes] == ["bob"]


def test_nobody_waits_for_gold_items(tmp_path: Path) -> None:
    missing(tmp_path)
    gold = [pair("known", gold={"better": 0}), replace(THREE[0], gold={"better": 1})]
    with Store.open(tmp_path / "labels.feedback") as store:
        store.ask(gold, "gold")
    assert missing(tmp_path) == 2
    for item in THREE[1:]:
        say(tmp_path, item)
    assert asked(tmp_path)[0].labels == [{"better": 1}]
    assert offered(tmp_path) == {"known", "question 0"}


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.feedback"
    missing(tmp_path)
    with Store.open(path) as store:
        store.connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(DataError, match="written by another alignkit"):
        asked(tmp_path)
    with path.open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(DataError, match=r"damaged|malformed"):
        asked(tmp_path)
