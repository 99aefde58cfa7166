"""Gold items come before the first item whose label counts, and whoever fails them labels
nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, several, side

pytest.importorskip("starlette")

from alignkit.errors import RecipeError
from alignkit_plugins.people.assignment import Qualification, qualification
from alignkit_plugins.people.command import prepared
from alignkit_plugins.people.store import Store
from tests.people.pages import Page, application, pairs, visit


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Six gold items whose first answer is right, of which five come first, and ten others."""
    with opened(tmp_path, *pairs(6, gold={"better": 0}), *pairs(16)[6:]) as found:
        yield found


def answer(page: Page, better: str) -> dict[str, Any]:
    """Answer what comes next, for the response that begins so or by a skip; the sent event."""
    item = page.next()["item"]
    sent = page.event(item, {"reason": "no"}, "skip")
    if better != "skip":
        first = item["responses"][0][0]["text"].startswith(better)
        sent = page.event(item, side("A" if first else "B"))
    assert page.post("submit", sent).status_code == 200
    return sent


def is_gold(store: Store, item: str) -> bool:
    return store.item(item).item.gold is not None


def test_gold_items_come_first_and_who_knows_them_labels_on(store: Store) -> None:
    """Also where an ordinary item was open before."""
    early = visit(*application(store)).next()["item"]
    assert not is_gold(store, early["id"])
    ada = visit(*application(store, qualify=5))
    refused = ada.post("submit", ada.event(early, side("A")))
    assert "some other items come first" in refused.json()["error"]["message"]
    assert "The first 5 items have known answers" in ada.next()["notice"]
    slip = answer(ada, "poor")
    assert ada.undo(slip["uuid"]).status_code == 200
    said = [answer(ada, better)["item"] for better in ("good", "good", "poor", "good", "good")]
    assert said[0] == slip["item"] and all(is_gold(store, item) for item in said)
    # 4 of 5 are enough, and gold items do not come otherwise
    assert qualification(store, "ada", 5) == Qualification(asked=5, answered=5, right=4)
    assert not is_gold(store, answer(ada, "good")["item"])
    assert ada.next()["item"] and not ada.next()["notice"]


@pytest.mark.parametrize("wrong", ["poor", "skip"])
def test_who_fails_sees_why_and_labels_nothing(store: Store, wrong: str) -> None:
    app, sessions = application(store, ["ada", "bob"], qualify=5)
    ada, bob = visit(app, sessions), visit(app, sessions, "bob")
    said = [answer(ada, better) for better in ("good", wrong, "good", wrong, "good")]
    state = ada.next()
    assert state["item"] is None and state["last"] is None and "80%" in state["end"]
    assert state["end"].startswith("Of the first 5 items, 3 of your answers match the known ones")

    for _ in range(5):
        answer(bob, "good")
    item = bob.next()["item"]  # the same message from a page that ada has not reloaded
    refused = ada.post("submit", ada.event(item, side("A")))
    assert (
        refused.status_code == 422 and "nothing more to label" in refused.json()["error"]["message"]
    )
    again = ada.undo(said[1]["uuid"])
    assert (
        again.status_code == 422 and "cannot be answered again" in again.json()["error"]["message"]
    )
    of_ada = [event.item for event in store.events() if event.annotator == "ada"]
    assert all(is_gold(store, str(item)) for item in of_ada)


def test_four_of_five_are_enough(tmp_path: Path) -> None:
    assert [Qualification(25, 25, right).passed for right in (19, 20)] == [False, True]
    assert Qualification(0, 0, 0).passed
    essay = several("demonstration", "Write.", 0, gold={"text": "b"})
    known = pairs(1, gold={"better": 0})[0]
    with opened(tmp_path, essay, known, name="texts") as store:  # with another text nobody is wrong
        store.submit(event(essay, {"text": "a"}))
        store.submit(event(known, side("B")))  # which comes after those that were asked
        assert qualification(store, "ann", 1).right == 1
        store.put(essay, wanted=1, retired=True)
        assert qualification(store, "ann", 2) == Qualification(asked=2, answered=1, right=0)
    path = opened(tmp_path, *pairs(6, gold={"better": 0})).path
    with prepared(path, None, None, qualify=6) as store:
        store.put(store.items()[0].item, wanted=1, retired=True)
    with pytest.raises(RecipeError, match="--qualify 6: the store has only 5 gold items"):
        prepared(path, None, None, qualify=6)
