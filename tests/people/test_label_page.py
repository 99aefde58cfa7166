"""What the page's requests do to the store: labels, undo, leases, adjudication, several servers."""

from __future__ import annotations

import html
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")


from alignkit.errors import DataError
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi, guidelines_now
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import consents, labeled
from tests.people.pages import Page, application, filled, opened, pairs
from tests.stores import ranking, turn

LEFT = {"side": "A", "margin": "better"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with filled(tmp_path / "a.feedback", pairs(6)) as found:
        yield found


@pytest.fixture
def ada(store: Store) -> Page:
    return opened(*application(store, ["ada", "bob"]))


def test_a_label_is_stored_as_it_was_shown(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    state = ada.post("submit", ada.event(item, {**LEFT, "note": "shorter"}, seconds=7.5)).json()
    assert state["item"]["id"] != item["id"] and state["progress"]["mine"] == 1
    event = store.events()[0]
    entry = labeled(store, [item["id"]])[0]
    assert (
        entry.stored.item.responses[entry.votes[0].label["better"]]
        == item["responses"][0][0]["text"]
    )
    assert (
        event.payload == {**LEFT, "note": "shorter"}
        and event.guidelines == ada.guidelines == state["guidelines"]
    )


def test_the_same_label_twice_is_one(ada: Page, store: Store) -> None:
    event = ada.event(ada.next()["item"], LEFT)
    first, second = ada.post("submit", event).json(), ada.post("submit", event).json()
    assert first == second and len(store.events()) == 1
    other = ada.post("submit", {**event, "payload": {"side": "B", "margin": "better"}})
    assert other.status_code == 422 and "another payload" in other.json()["error"]


def test_a_second_tab_changes_the_label_and_does_not_repeat_it(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    ada.post("submit", ada.event(item, LEFT))
    ada.post("submit", ada.event(item, {"side": "B", "margin": "better"}))
    assert labeled(store, [item["id"]])[0].votes[0].label["better"] == store.events()[0].order[1]


def test_undo_once_however_often_it_is_sent(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    given = {**LEFT, "note": "why"}
    state = ada.post("submit", ada.event(item, given, seconds=9.0)).json()
    undo = {"uuid": str(uuid.uuid4()), "of": state["last"]}
    back = ada.post("undo", undo).json()
    assert (
        back["item"]["id"] == item["id"]
        and back["draft"]["value"] == given
        and back["draft"]["seconds"] == 9.0
    )
    assert ada.post("undo", undo).json() == back
    assert [event.kind for event in store.events()] == ["label", "undo"] and back["last"] is None
    assert ada.post("undo", {"uuid": str(uuid.uuid4()), "of": state["last"]}).status_code == 422
    ada.post("submit", ada.event(item, {"side": "B", "margin": "unsure"}))
    assert labeled(store, [item["id"]])[0].votes[0].label["margin"] == "unsure"


def test_skips_and_flags(ada: Page, store: Store) -> None:
    first = ada.next()["item"]
    second = ada.post("submit", ada.event(first, {"reason": "too long"}, "skip")).json()
    third = ada.post("submit", ada.event(second["item"], {"note": "broken"}, "flag")).json()
    assert len({first["id"], second["item"]["id"], third["item"]["id"]}) == 3
    assert ada.post("submit", ada.event(third["item"], {"reason": " "}, "skip")).status_code == 422
    back = ada.post("undo", {"uuid": str(uuid.uuid4()), "of": third["last"]}).json()
    assert back["item"]["id"] == second["item"]["id"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shown": ["0" * 16, "1" * 16]}, "other answers"),
        ({"shown": []}, "other answers"),
        ({"guidelines": "unknown"}, "guidelines"),
        ({"payload": {"side": "C", "margin": "better"}}, "side"),
        ({"payload": {}}, "side"),
        ({"item": "none"}, "no item"),
        ({"uuid": "1"}, "uuid"),
        ({"seconds": -1.0}, "seconds"),
        ({"kind": "adjudicate"}, "kind"),
        ({"kind": "consent"}, "kind"),
        ({"revision": 1}, "revision"),
    ],
)
def test_labels_that_are_refused(
    ada: Page, store: Store, change: dict[str, Any], said: str
) -> None:
    answer = ada.post("submit", {**ada.event(ada.next()["item"], LEFT), **change})
    assert answer.status_code == 422 and said in answer.json()["error"]
    assert store.events() == []


def test_a_full_disk_is_said_and_the_label_can_be_sent_again(
    ada: Page, store: Store, monkeypatch: Any
) -> None:
    event = ada.event(ada.next()["item"], LEFT)
    real = Store.submit

    def full(self: Store, event: Any) -> Any:
        raise DataError("the disk is full")

    monkeypatch.setattr(Store, "submit", full)
    answer = ada.post("submit", event)
    assert answer.status_code == 503 and "full" in answer.json()["error"]
    monkeypatch.setattr(Store, "submit", real)
    assert ada.post("submit", event).status_code == 200 and len(store.events()) == 1


def test_a_store_that_another_program_holds_is_said(ada: Page, store: Store) -> None:
    event = ada.event(ada.next()["item"], LEFT)
    store.connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ada.post("submit", event)
    assert answer.status_code == 503 and "locked" in answer.json()["error"]
    other.execute("COMMIT")
    other.close()
    assert ada.post("submit", event).status_code == 200


def test_consent(ada: Page, store: Store) -> None:
    """It is asked for on the page, and decides what `alignkit labels export` may share."""
    assert ada.next()["consent"] is None
    for granted in (True, False):
        message = {"uuid": str(uuid.uuid4()), "granted": granted}
        assert (
            ada.post("consent", message).json()
            == ada.post("consent", message).json()
            == {"consent": granted}
        )
        assert ada.next()["consent"] is granted and consents(store) == {"ada": granted}
    assert store.events()[0].payload["terms"] in html.unescape(ada.html)


def test_what_each_task_shows(tmp_path: Path) -> None:
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
    }
    answer: Any = (
        called,
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "three"},
    )
    items = [
        Item("demonstration", (turn("a"),), ("raw\u202e",)),
        Item("thumb", (turn("b"),), (answer,)),
        ranking("c", 9),
    ]
    with filled(tmp_path / "a.feedback", items) as store:
        desk = LabelApi(store)
        shown = desk.next("ada", {})["item"]
        assert shown["text"] == "raw\u202e" and shown["responses"] == [
            [{"role": "assistant", "text": "raw⟦U+202E⟧"}]
        ]
        message = {"uuid": str(uuid.uuid4()), "kind": "label", "item": shown["id"]}
        more = {
            "shown": shown["shown"],
            "payload": {"text": "better"},
            "guidelines": guidelines_now(store)[0],
        }
        shown = desk.submit("ada", {**message, **more})["item"]
        assert [turn["role"] for turn in shown["responses"][0]] == [
            "assistant",
            "tool",
            "assistant",
        ]
        assert shown["responses"][0][0]["text"] == "add({})" and "text" not in shown
