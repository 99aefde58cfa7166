"""What the page's requests do to the store: labels, undo, leases, consent."""

from __future__ import annotations

import html
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from stores import event, opened, pair, ranking, side, turn

pytest.importorskip("starlette")

from alignkit.errors import DataError
from alignkit_plugins.people.assignment import order_of
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi, guidelines_now
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import consents, labeled
from tests.people.pages import Page, application, pairs, visit


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with opened(tmp_path, *pairs(6)) as found:
        yield found


@pytest.fixture
def ada(store: Store) -> Page:
    return visit(*application(store))


def test_a_label_is_stored_as_it_was_shown_and_once(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    sent = ada.event(item, side("A", note="shorter"), seconds=7.5)
    state = ada.post("submit", sent).json()
    assert ada.post("submit", sent).json() == state
    assert state["item"]["id"] != item["id"] and state["progress"] == {"mine": 1, "total": 6}
    (event,) = store.events()
    (entry,) = labeled(store, [item["id"]])
    better = entry.item.responses[entry.votes["ada"]["better"]]
    assert better == item["responses"][0][0]["text"]
    assert event.payload == sent["payload"]
    assert event.guidelines == ada.guidelines == state["guidelines"]
    store.ask([], "")
    state = ada.post("submit", ada.event(item, side("B"))).json()  # of a second tab
    assert state["notice"].startswith("The data changed.")
    assert labeled(store, [item["id"]])[0].votes["ada"]["better"] == event.order[1]


def test_undo_once_however_often_it_is_sent(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    given = side("A", note="why")
    state = ada.post("submit", ada.event(item, given, seconds=9.0)).json()
    undo = {"uuid": str(uuid.uuid4()), "of": state["last"]}
    back = ada.post("undo", undo).json()
    assert back["item"] == item and back["last"] is None
    assert back["draft"] == {"shown": item["shown"], "value": given, "seconds": 9.0}
    assert ada.post("undo", undo).json() == back and ada.next()["item"] == item
    assert [event.kind for event in store.events()] == ["label", "undo"]
    assert ada.undo(state["last"]).status_code == 422
    ada.post("submit", ada.event(item, side("B", "unsure")))
    assert labeled(store, [item["id"]])[0].votes["ada"]["margin"] == "unsure"


CHANGED = yaml.safe_load("""
- [{shown: ["0000000000000000", "1111111111111111"]}, other answers]
- [{guidelines: unknown}, guidelines]
- [{payload: {}}, side]
- [{item: none}, no item]
- [{kind: consent}, kind]
- [{revision: 1}, revision]
- [{annotator: bob}, annotator]
""")


@pytest.mark.parametrize(("change", "said"), CHANGED)
def test_labels_that_are_refused(
    ada: Page, store: Store, change: dict[str, Any], said: str
) -> None:
    answer = ada.post("submit", {**ada.event(ada.next()["item"], side("A")), **change})
    assert answer.status_code == 422 and said in answer.json()["error"]["message"]
    assert store.events() == []


def test_a_store_that_cannot_be_written_is_said_and_the_label_can_be_sent_again(
    ada: Page, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = ada.event(ada.next()["item"], side("A"))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "submit", lambda *asked: (_ for _ in ()).throw(DataError("disk full")))
        answer = ada.post("submit", event)
    assert answer.status_code == 503 and "disk full" in answer.json()["error"]["message"]
    store.connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ada.post("submit", event)
    assert answer.status_code == 503 and "locked" in answer.json()["error"]["message"]
    other.close()
    assert ada.post("submit", event).status_code == 200 and len(store.events()) == 1


def test_consent(ada: Page, store: Store) -> None:
    """It is asked for on the page, and decides what `alignkit labels export` may share."""
    assert ada.next()["consent"] is None
    for granted in (True, False):
        known = {"granted": granted, "credit": "Ada Lee", "about": "MSc · German · "}
        message = {"uuid": str(uuid.uuid4()), **known}
        for _ in range(2):
            assert ada.post("consent", message).json() == {"consent": granted}
        assert ada.next()["consent"].items() >= known.items()
        assert consents(store)["ada"].granted is granted
    first, _ = store.events()
    assert first.payload["terms"] in html.unescape(ada.html)
    assert first.payload["credit"] == "Ada Lee"


@pytest.mark.parametrize("allowed", [True, False])
def test_what_others_said_is_shown_at_the_end(tmp_path: Path, allowed: bool) -> None:
    """Never before, and not who; then nothing can be undone."""
    with opened(tmp_path, pair(results=allowed), pair("Ho"), wanted=2) as store:
        store.submit(event(pair(), {"note": "a name"}, kind="flag", who="cy"))
        app, sessions = application(store, ["bob", "ada"])
        for who in sessions:
            page = visit(app, sessions, who)
            while (item := page.next()["item"]) is not None:
                assert page.post("results", {}).status_code == 422
                said = page.event(item, side("A", note=f"by {who}"))
                state = page.post("submit", said).json()
        answer = page.post("results", {})
        assert state["results"] is allowed
        ada, bob = (order_of(pair().id, who, 2)[0] for who in ("ada", "bob"))
        said = dict.fromkeys(("better", "ranks", "good", "flagged"))
        votes = [{**said, "better": ada, "mine": True, "note": "by ada"}]
        votes.append({**said, "better": bob, "mine": False, "note": "by bob"})
        votes.append({**said, "flagged": True, "mine": False, "note": "a name"})
        seen = {"prompt": "Hi", "answers": ["Hello!", "What?"][:: 1 - 2 * ada]}
        row = {**seen, "order": [ada, 1 - ada], "votes": sorted(votes, key=str)}
        assert answer.json().get("results") == ([row] if allowed else None)
        assert ("shown since" in page.undo(state["last"]).text) is allowed


def test_what_each_task_shows(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": "*2*"}}
    answer: Any = (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "three", "reasoning_content": "1 + 2"},
    )
    items = [
        Item("demonstration", (turn("a"),), ("raw\u202e",)),
        Item("thumb", (turn("b"),), (answer,)),
        ranking("c", 9),
    ]
    with opened(tmp_path, *items) as store:
        desk = LabelApi(store)
        shown = desk.next("ada", {})["item"]
        assert shown["text"] == "raw\u202e"
        assert shown["responses"] == [[{"role": "assistant", "text": "raw⟦U+202E⟧"}]]
        ada = Page(None, "", "", guidelines_now(store)[0])
        shown = desk.submit("ada", ada.event(shown, {"text": "better"}))["item"]
        assert shown["responses"] == [
            [
                {"role": "assistant", "text": "[calls add(*2*)]"},
                {"role": "tool", "text": "3"},
                {"role": "assistant", "text": "1 + 2\n\nthree"},
            ]
        ]
        assert "text" not in shown
        ranked = desk.submit("ada", ada.event(shown, {"good": True}))["item"]
        desk.submit("ada", ada.event(ranked, {"ranks": [*range(1, 10)]}))
        label = labeled(store)[-1].votes["ada"]
        best = sorted(items[-1].responses, key=lambda each: label["ranks"][int(str(each)[-1])])
        assert best == [turns[0]["text"] for turns in ranked["responses"]] != [*items[-1].responses]
