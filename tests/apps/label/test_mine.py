"""The page of an annotator's own labels: gold items that differ, and contesting them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from alignkit_apps.label.annotator_stats import in_words, quality, stats_of
from alignkit_plugins.people.assignment import REPEAT_AFTER
from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.store import Plan, Store
from tests.apps.label.pages import Page, application, filled, opened, pairs

LEFT = {"side": "A", "margin": "better"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Two gold items whose first answer is right, and others."""
    with filled(tmp_path / "a.feedback", [*pairs(2, gold={"better": 0}), *pairs(40)[2:]]) as found:
        found.set_plan(Plan(gold_rate=0.99, repeat_rate=0))
        yield found


def work(page: Page, store: Store, count: int, better: str = "poor") -> list[str]:
    """Label items that come next, for the answer that begins so; their ids."""
    done = []
    for _ in range(count):
        item = page.next()["item"]
        side = "A" if item["responses"][0][0]["text"].startswith(better) else "B"
        page.post("submit", page.event(item, {"side": side, "margin": "better"}))
        done.append(item["id"])
    return done


def test_a_gold_item_shows_up_ten_labels_later(store: Store) -> None:
    app, sessions = application(store, ["ada", "bob"])
    ada, bob = opened(app, sessions), opened(app, sessions, "bob")
    first, second = work(ada, store, 2)
    assert {first, second} == {entry.stored.item.id for entry in labeled(store) if entry.stored.item.gold}
    work(ada, store, REPEAT_AFTER - 2)
    assert stats_of(store, "ada").misses == [] and stats_of(store, "ada").gold is None
    contest = {"uuid": str(uuid.uuid4()), "item": first, "note": "no"}
    answer = ada.post("contest", contest)
    assert answer.status_code == 422 and "not on the page" in answer.json()["error"]
    work(ada, store, 1)
    found = stats_of(store, "ada")
    assert [miss.item for miss in found.misses] == [first]
    miss = found.misses[0]
    assert {miss.said, miss.expected[0]} in ({"A, better", "B"}, {"B, better", "A"})
    assert miss.answers["AB".index(miss.expected)].startswith("good")
    assert stats_of(store, "bob").misses == [] and bob.post("contest", contest).status_code == 422
    page = ada.client.get("/mine").text
    assert "good" in page and "The known answer" in page and "secret" not in page


def test_a_contested_label_counts_against_nobody(store: Store) -> None:
    ada = opened(*application(store))
    first, second = work(ada, store, 2)
    work(ada, store, REPEAT_AFTER)
    before = quality(store).annotators[0].gold
    assert before and (before["mean"], before["n"]) == (0, 2)
    contest = {"uuid": str(uuid.uuid4()), "item": first, "note": "the other one is right"}
    for _ in range(2):
        assert ada.post("contest", contest).json() == {"contested": True}
    assert [event.kind for event in store.events() if event.item == first] == ["label", "contest"]
    after, own = quality(store).annotators[0].gold, stats_of(store, "ada")
    assert after and after["n"] == 1 and own.gold and own.gold["n"] == 1
    assert {miss.item: miss.contested for miss in own.misses} == {first: "the other one is right", second: ""}
    assert "You contested it: the other one is right" in ada.client.get("/mine").text
    # The reviewer sees it, with the known answer, and decides.
    state = ada.next("adjudicate")
    said = {vote["annotator"]: vote["said"] for vote in state["votes"][1:]}
    assert state["item"]["id"] == first and said["ada"] == "contest: the other one is right"
    poor = "AB"[[answer[0]["text"][:4] for answer in state["item"]["responses"]].index("poor")]
    ada.post("submit", ada.event(state["item"], {"side": poor, "margin": "better"}, "adjudicate"), "adjudicate")
    settled = quality(store).annotators[0].gold
    assert settled and (settled["mean"], settled["n"]) == (0.5, 2)
    assert [miss.item for miss in stats_of(store, "ada").misses] == [second]


def test_a_contest_is_not_what_undo_takes_back(store: Store) -> None:
    ada = opened(*application(store))
    first, *_ = work(ada, store, REPEAT_AFTER + 2)
    last = ada.next()["last"]
    ada.post("contest", {"uuid": str(uuid.uuid4()), "item": first, "note": "wrong"})
    assert ada.next()["last"] == last


def test_strangers_see_nothing(store: Store) -> None:
    from starlette.testclient import TestClient

    app, _ = application(store)
    assert TestClient(app, base_url="http://127.0.0.1:8765").get("/mine").status_code == 401


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"side": "A"}, "A"),
        (
            {"side": "B", "margin": "unsure", "safety": "both_safe", "note": "x\u202e"},
            "B, unsure; both are safe; x⟦U+202E⟧",
        ),
        ({"ranks": [2, 1, 2]}, "B > A = C"),
        ({"scores": [{"helpful": 7}, {"helpful": 2.5}]}, "A: helpful 7; B: helpful 2.5"),
        ({"good": False}, "bad"),
        ({"text": "mine"}, "mine"),
    ],
)
def test_labels_in_words(label: dict[str, Any], words: str) -> None:
    assert in_words(label) == words


def test_own_labels_can_be_changed_but_not_those_whose_answer_was_told(store: Store) -> None:
    app, sessions = application(store, ["ada", "bob"])
    ada, bob = opened(app, sessions), opened(app, sessions, "bob")
    work(ada, store, 2 + REPEAT_AFTER)
    found = stats_of(store, "ada")
    told = {miss.item for miss in found.misses}
    assert len(told) == 2 and len(found.labeled) == REPEAT_AFTER and found.older == 0
    own = found.labeled[-1]
    assert own.said in ("A, better", "B, better") and f'data-of="{own.event}"' in ada.client.get("/mine").text
    assert bob.post("undo", {"uuid": str(uuid.uuid4()), "of": own.event}).status_code == 422
    state = ada.post("undo", {"uuid": str(uuid.uuid4()), "of": own.event}).json()
    assert state["item"]["prompt"][-1]["text"] == own.prompt and state["draft"]["value"]["margin"] == "better"
    assert ada.next()["item"]["id"] == state["item"]["id"]
    events = [event.uuid for event in store.events() if event.item in told]
    # Also after the undo of another label, which leaves fewer labels behind this one.
    assert not told & {store.item(event.item).item.id for event in store.events() if event.uuid == own.event}
    assert {own.event for own in stats_of(store, "ada").labeled}.isdisjoint(events)
    refused = ada.post("undo", {"uuid": str(uuid.uuid4()), "of": events[0]})
    assert refused.status_code == 422 and "its known answer was shown" in refused.json()["error"]


def test_the_end_says_how_far_people_agree(tmp_path: Path) -> None:
    with filled(tmp_path / "a.feedback", pairs(2)) as store:
        store.set_plan(Plan(overlap=2, gold_rate=0, repeat_rate=0))
        app, sessions = application(store, ["ada", "bob"])
        ada, bob = opened(app, sessions), opened(app, sessions, "bob")
        work(ada, store, 2)
        assert ada.next()["end"] == {"agreement": "", "next": ""}
        work(bob, store, 1)
        assert bob.next()["end"] is None
        work(bob, store, 1, better="good")
        assert bob.next()["end"]["agreement"] == "Two people agree in 50% of 2 comparisons of their labels."
