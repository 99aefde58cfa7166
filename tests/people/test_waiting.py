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
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import Labeled

THREE = [pair(f"question {index}") for index in range(3)]


def store(folder: Path) -> Store:
    return Store.open(folder / "labels.feedback")


def asked(
    place: Path, items: Sequence[Item] = THREE, stage: str = "labels", **more: Any
) -> list[Labeled]:
    folder = place / stage
    return labels_of(place / "labels.feedback", items, stage=stage, folder=folder, **more)


def missing(place: Path, items: Sequence[Item] = THREE, **more: Any) -> int:
    with pytest.raises(StageWaits) as waiting:
        asked(place, items, **more)
    return waiting.value.missing


def say(folder: Path, *items: Item, payload: Any = None, **more: Any) -> None:
    with store(folder) as opened:
        for item in items:
            opened.submit(event(item, payload, **more))


def offered(folder: Path, who: str) -> set[str]:
    """The questions that an annotator would get."""
    found = set()
    with store(folder) as opened:
        while (given := next_item(opened, who)) is not None:
            item = given.stored.item
            found.add(str(item.prompt[0]["content"]))
            opened.submit(event(item, {"reason": "?"}, kind="skip", who=who))
    return found


def test_each_item_needs_labels_of_different_people(tmp_path: Path) -> None:
    assert missing(tmp_path, annotators=2) == 6
    say(tmp_path, *THREE)
    assert missing(tmp_path, annotators=2) == 3
    assert offered(tmp_path, "ann") == set()
    say(tmp_path, *THREE, who="bob")
    assert [len(entry.votes) for entry in asked(tmp_path, annotators=2)] == [2, 2, 2]
    assert len(asked(tmp_path)) == 3


def test_flagged_and_skipped_items_do_not_keep_a_run_waiting(tmp_path: Path) -> None:
    missing(tmp_path)
    say(tmp_path, THREE[0])
    say(tmp_path, THREE[1], payload={"reason": "too long"}, kind="skip")
    say(tmp_path, THREE[2], payload={"note": "nonsense"}, kind="flag")
    entries = asked(tmp_path)
    assert [entry.item.id for entry in entries] == [item.id for item in THREE]
    assert [bool(entry.votes) for entry in entries] == [True, False, False]


def test_stages_and_runs_at_one_store_do_not_retire_each_others_items(tmp_path: Path) -> None:
    missing(tmp_path, THREE, stage="one/labels")
    missing(tmp_path, [pair("another question")], stage="two/labels")
    missing(tmp_path, THREE[:1], stage="one/labels")
    with store(tmp_path) as opened:
        known = [(stored.item.batch, stored.retired) for stored in opened.items()]
    one, two = "one/labels", "two/labels"
    assert known == [(one, False), (one, True), (one, True), (two, False)]


def test_an_item_is_open_until_every_stage_that_asks_has_its_labels(tmp_path: Path) -> None:
    many: dict[str, Any] = {"items": THREE[:1], "stage": "many", "annotators": 3}
    for _ in range(2):  # a run asks for all its stages, again and again
        assert missing(tmp_path, **many) == 3
        assert missing(tmp_path, THREE[:1], stage="one") == 1
    say(tmp_path, THREE[0])
    assert [missing(tmp_path, **many) for _ in range(2)] == [2, 2]
    assert asked(tmp_path, THREE[:1], stage="one")
    assert offered(tmp_path, "bob") == {"question 0"}


def test_labels_of_somebody_who_withdraws_are_asked_of_others(tmp_path: Path) -> None:
    missing(tmp_path, THREE[:1])
    say(tmp_path, THREE[0])
    with store(tmp_path) as opened:
        for granted in (True, False):
            opened.submit(event(None, {"granted": granted}, kind="consent"))
    assert offered(tmp_path, "bob") == set()
    assert missing(tmp_path, THREE[:1]) == 1
    assert offered(tmp_path, "ann") == set() and offered(tmp_path, "eve") == {"question 0"}
    say(tmp_path, THREE[0], who="bob")
    assert list(asked(tmp_path, THREE[:1])[0].votes) == ["bob"]


def test_nobody_waits_for_gold_items(tmp_path: Path) -> None:
    missing(tmp_path)
    gold = [pair("known", gold={"better": 0}), replace(THREE[0], gold={"better": 1})]
    with store(tmp_path) as opened:
        opened.ask(gold, "gold")
    assert missing(tmp_path) == 2
    say(tmp_path, *THREE[1:])
    assert asked(tmp_path)[0].labels == [{"better": 1}]
    assert offered(tmp_path, "zoe") == {"known", "question 0"}


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.feedback").write_bytes(b"")
    with pytest.raises(DataError, match="written by another alignkit"):
        asked(tmp_path)
