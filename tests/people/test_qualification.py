"""Gold items come before the first item whose label counts, and whoever fails them labels
nothing.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from alignkit.errors import RecipeError
from alignkit_plugins.people.assignment import Qualification, qualification
from alignkit_plugins.people.command import prepared
from alignkit_plugins.people.store import Store
from tests.people.pages import Page, application, filled, opened, pairs


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Six gold items whose first answer is right, of which five come first, and ten others."""
    with filled(tmp_path / "a.feedback", [*pairs(6, gold={"better": 0}), *pairs(16)[6:]]) as found:
        yield found


def answer(page: Page, better: str) -> dict[str, Any]:
    """Answer what comes next, for the response that begins so or by a skip; the sent event."""
    item = page.next()["item"]
    if better == "skip":
        sent = page.event(item, {"reason": "no"}, "skip")
    else:
        side = "A" if item["responses"][0][0]["text"].startswith(better) else "B"
        sent = page.event(item, {"side": side, "margin": "better"})
    assert page.post("submit", sent).status_code == 200
    return sent


def is_gold(store: Store, item: str) -> bool:
    return store.item(item).item.gold is not None


def test_gold_items_come_first_and_who_knows_them_labels_on(store: Store) -> None:
    ada = opened(*application(store, qualify=5))
    assert "The first 5 items have known answers" in ada.next()["notice"]
    said = [answer(ada, better)["item"] for better in ("good", "good", "poor", "good", "good")]
    assert all(is_gold(store, item) for item in said)
    # 4 of 5 are enough, and gold items do not come otherwise
    assert not is_gold(store, answer(ada, "good")["item"])
    assert ada.next()["item"] and not ada.next()["notice"]


@pytest.mark.parametrize("wrong", ["poor", "skip"])
def test_who_fails_sees_why_and_labels_nothing(store: Store, wrong: str) -> None:
    app, sessions = application(store, ["ada", "bob"], qualify=5)
    ada, bob = opened(app, sessions), opened(app, sessions, "bob")
    said = [answer(ada, better) for better in ("good", wrong, "good", wrong, "good")]
    state = ada.next()
    assert state["item"] is None and state["last"] is None and "80%" in state["end"]
    assert state["end"].startswith("Of the first 5 items, 3 of your answers match the known ones")

    for _ in range(5):
        answer(bob, "good")
    item = bob.next()["item"]  # the same message from a page that ada has not reloaded
    refused = ada.post("submit", ada.event(item, {"side": "A", "margin": "better"}))
    assert refused.status_code == 422 and "nothing more to label" in refused.json()["error"]
    again = ada.post("undo", {"uuid": str(uuid.uuid4()), "of": said[1]["uuid"]})
    assert again.status_code == 422 and "cannot be answered again" in again.json()["error"]
    assert not [
        one
        for one in store.events()
        if one.annotator == "ada" and not is_gold(store, str(one.item))
    ]


def test_before_the_verdict_a_slip_can_be_undone(store: Store) -> None:
    ada = opened(*application(store, qualify=5))
    first = answer(ada, "poor")
    assert ada.post("undo", {"uuid": str(uuid.uuid4()), "of": first["uuid"]}).status_code == 200
    for _ in range(5):
        answer(ada, "good")
    assert qualification(store, "ada", 5).right == 5 and qualification(store, "ada", 5).passed


def test_an_ordinary_item_that_was_open_before_waits(store: Store) -> None:
    assert not is_gold(store, opened(*application(store)).next()["item"]["id"])
    assert is_gold(store, opened(*application(store, qualify=5)).next()["item"]["id"])


def test_more_gold_items_than_there_are(tmp_path: Path) -> None:
    filled(tmp_path / "a.feedback", pairs(6, gold={"better": 0})).close()
    with pytest.raises(RecipeError, match="--qualify 7: the store has only 6 gold items"):
        prepared(tmp_path / "a.feedback", None, None, qualify=7)


def test_four_of_five_are_enough() -> None:
    assert [Qualification(25, 25, right).passed for right in (19, 20)] == [False, True]
    assert Qualification(0, 0, 0).passed
