"""What the page's requests do to the store: labels, undo, leases, adjudication, several servers."""

from __future__ import annotations

import html
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")


from alignkit.errors import OutOfResource
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi, guidelines_now
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import consents, labeled
from tests.people.pages import Page, application, filled, opened, pairs
from tests.stores import event, pair, ranking, turn

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
    assert (
        state["item"]["id"] != item["id"]
        and state["progress"]["mine"] == 1
        and state["progress"]["pace"] == 7.5
    )
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


def test_another_annotators_event_cannot_be_undone(store: Store) -> None:
    app, sessions = application(store, ["ada", "bob"])
    ada, bob = opened(app, sessions), opened(app, sessions, "bob")
    state = ada.post("submit", ada.event(ada.next()["item"], LEFT)).json()
    answer = bob.post("undo", {"uuid": str(uuid.uuid4()), "of": state["last"]})
    assert answer.status_code == 422 and len(store.events()) == 1


def test_skips_and_flags(ada: Page, store: Store) -> None:
    first = ada.next()["item"]
    second = ada.post("submit", ada.event(first, {"reason": "too long"}, "skip")).json()
    assert second["progress"]["skipped"] == 1
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


def test_a_label_of_a_row_that_changed_is_kept(ada: Page, store: Store) -> None:
    item = ada.next()["item"]
    store.ask([pair("prompt 1", "good 1, improved", "poor")], "")
    state = ada.post("submit", ada.event(item, LEFT)).json()
    assert "changed" in state["notice"] and len(store.events()) == 1


def test_a_full_disk_is_said_and_the_label_can_be_sent_again(
    ada: Page, store: Store, monkeypatch: Any
) -> None:
    event = ada.event(ada.next()["item"], LEFT)
    real = Store.submit

    def full(self: Store, event: Any) -> Any:
        raise OutOfResource("the disk is full")

    monkeypatch.setattr(Store, "submit", full)
    answer = ada.post("submit", event)
    assert answer.status_code == 507 and "full" in answer.json()["error"]
    monkeypatch.setattr(Store, "submit", real)
    assert ada.post("submit", event).status_code == 200 and len(store.events()) == 1


def test_a_store_that_another_program_holds_is_said(ada: Page, store: Store) -> None:
    event = ada.event(ada.next()["item"], LEFT)
    store.connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ada.post("submit", event)
    assert answer.status_code == 503 and "another program" in answer.json()["error"]
    other.execute("COMMIT")
    other.close()
    assert ada.post("submit", event).status_code == 200


def test_thirty_people_at_two_servers(tmp_path: Path) -> None:
    """Nobody gets an item that another one has, and every label is stored once."""
    path = tmp_path / "a.feedback"
    names = [f"person {n}" for n in range(30)]
    with filled(path, pairs(90)) as one, Store.open(path) as two:
        apps = [application(store, names) for store in (one, two)]

        def work(number: int) -> int:
            person, count = opened(*apps[number % 2], names[number]), 0
            state = person.next()
            while item := state["item"]:
                answer = person.post("submit", person.event(item, LEFT))
                assert answer.status_code == 200, answer.text
                state, count = answer.json(), count + 1
            return count

        with ThreadPoolExecutor(30) as pool:
            counts = list(pool.map(work, range(30)))
        assert sum(counts) == len(one.events()) == 90
        assert len({event.item for event in one.events()}) == 90


def disagreed(store: Store, *people: Page) -> None:
    """The people label the first item, with different answers."""
    wanted = store.items()[0].item.id
    for person, better in zip(people, ("good", "poor"), strict=True):
        item = person.next()["item"]
        assert item["id"] == wanted
        side = "A" if item["responses"][0][0]["text"].startswith(better) else "B"
        person.post("submit", person.event(item, {"side": side, "margin": "better"}))


def test_adjudication(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.feedback", pairs(6), wanted=2)
    app, sessions = application(store, ["ada", "bob", "carl"])
    ada, bob, carl = (opened(app, sessions, who) for who in ("ada", "bob", "carl"))
    wanted = store.items()[0].item.id
    disagreed(store, bob, carl)
    state = ada.next("adjudicate")
    assert state["progress"]["total"] == 1 and [vote["annotator"] for vote in state["votes"]] == [
        "bob",
        "carl",
    ]
    item = state["item"]
    sides = [vote["said"].removeprefix("side: ")[0] for vote in state["votes"]]
    good = "AB"[[answer[0]["text"][:4] for answer in item["responses"]].index("good")]
    assert sides[0] == good and sides[1] != good
    event = ada.event(item, {"side": good, "margin": "better"}, "adjudicate")
    after = ada.post("submit", event, "adjudicate").json()
    assert after["item"] is None and after == ada.post("submit", event, "adjudicate").json()
    entry = labeled(store, [wanted])[0]
    assert entry.final == {"better": 0, "margin": "better"} and len(entry.votes) == 2
    assert ada.post("submit", ada.event(item, LEFT), "adjudicate").status_code == 422
    back = ada.post("undo", {"uuid": str(uuid.uuid4()), "of": after["last"]}, "adjudicate").json()
    assert back["item"]["id"] == wanted and labeled(store, [wanted])[0].adjudicated is None


def test_who_labeled_an_item_does_not_settle_it(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.feedback", pairs(1), wanted=2)
    app, sessions = application(store, ["ada", "bob"])
    ada, bob = opened(app, sessions), opened(app, sessions, "bob")
    item = ada.next()["item"]
    disagreed(store, ada, bob)
    state = ada.next("adjudicate")
    assert state["item"] is None and "a label of yours" in state["end"]["said"]
    answer = ada.post("submit", ada.event(item, LEFT, "adjudicate"), "adjudicate")
    assert answer.status_code == 422 and "somebody else settles it" in answer.json()["error"]
    app, sessions = application(store, ["carl"])
    assert opened(app, sessions, "carl").next("adjudicate")["item"]["id"] == item["id"]


def test_what_else_there_is_to_do(tmp_path: Path) -> None:
    """Sharing after one's first label, quality if several people labeled, adjudication if something
    is left for one.
    """
    store = filled(tmp_path / "a.feedback", pairs(2), wanted=2)
    app, sessions = application(store, ["eve", "ada", "bob"])
    eve, ada, bob = (opened(app, sessions, who) for who in ("eve", "ada", "bob"))
    assert ada.next()["todo"] == {"sharing": False, "quality": False, "adjudicate": False}
    disagreed(store, ada, bob)
    assert ada.next()["todo"] == {"sharing": True, "quality": True, "adjudicate": False}
    assert eve.next()["todo"] == {"sharing": False, "quality": True, "adjudicate": True}
    message = {"uuid": str(uuid.uuid4()), "granted": False}
    eve.post("consent", message)
    assert eve.next()["todo"]["sharing"]  # an answer can be changed


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


def test_quality_is_of_everybody_for_reviewers_and_of_oneself_for_others(tmp_path: Path) -> None:
    items = [*pairs(3, gold={"better": 0}), pair("ordinary")]
    with filled(tmp_path / "a.feedback", items, wanted=2) as store:
        app, sessions = application(store, ["ada", "<b>bob"])
        empty = opened(app, sessions).client.get("/quality").text
        for item in items:
            for who in ("ada", "<b>bob"):
                store.submit(event(item, {"side": "A", "margin": "better"}, who=who, order=(0, 1)))
        store.submit(event(items[0], {"reason": "hard"}, who="<b>bob", kind="skip"))
        ada, bob = (
            opened(app, sessions, who).client.get("/quality").text for who in ("ada", "<b>bob")
        )
    assert "no label yet" in empty
    assert "&lt;b&gt;bob" in ada and "<b>bob" not in ada and "alpha" in ada and "100%" in ada
    assert ">ada<" not in bob and "&lt;b&gt;bob</th><td>3</td><td>1</td>" in bob
