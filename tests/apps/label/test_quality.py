"""The figures of the quality page, by hand."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from alignkit_apps.label.annotator_stats import Latest, quality
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Event, Store
from tests.stores import Clock, pair, ranking


def say(store: Store, annotator: str, item: Item, order: tuple[int, ...] = (0, 1), **more: Any) -> None:
    payload = more.pop("payload", {"side": "A", "margin": "better"})
    store.submit(Event(str(uuid.uuid4()), annotator, "label", payload, item.id, order=order, **more))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "a.feedback", new=True) as found:
        yield found


def test_the_figures_of_each_annotator(store: Store) -> None:
    """Two gold items and two others; the first answer of each is the shorter one, `x`."""
    gold = [pair(f"g{n}", "x", "longer", gold={"better": 0}) for n in range(2)]
    rest = [pair(f"p{n}", "x", "longer") for n in range(2)]
    store.add([*gold, *rest])
    say(store, "ada", gold[0], (0, 1), seconds=4.0)  # left, x: right
    say(store, "ada", gold[1], (1, 0), seconds=6.0)  # left, longer: wrong
    say(store, "ada", rest[0], (0, 1), seconds=20.0)  # left, x
    say(store, "bob", rest[0], (1, 0), seconds=1.0)  # left, longer
    say(store, "bob", rest[1], (1, 0), payload={"side": "B", "margin": "unsure"})  # right, x
    say(store, "ada", rest[1], (0, 1))  # left, x
    say(store, "ada", rest[0], (1, 0), occasion=1)  # longer: not as before
    store.submit(Event(str(uuid.uuid4()), "cyd", "skip", {"reason": "hard"}, rest[0].id))
    report = quality(store)
    ada, bob, cyd = report.annotators
    assert ada.gold == {
        "mean": 0.5,
        "low": pytest.approx(0.0945, abs=1e-4),
        "high": pytest.approx(0.9055, abs=1e-4),
        "n": 2,
    }
    assert (ada.labels, ada.seconds) == (4, 6.0)
    assert bob.gold is None
    which, _ = report.questions
    assert which["same"]["mean"] == 0.5 and which["shared"] == 2
    assert report.gold and (report.gold["mean"], report.gold["n"], report.labels) == (0.5, 2, 6)
    assert ada.others and ada.others["mean"] == 0.5 and report.disputes == 1
    assert (cyd.labels, cyd.skips, cyd.seconds) == (0, 1, None)


def test_one_and_the_same_label_is_a_habit(store: Store) -> None:
    items = [pair(f"p{n}", "x", "y") for n in range(20)]
    store.add(items)
    for item in items:
        say(store, "ada", item)
    say(store, "bob", items[0])
    ada, bob = quality(store).annotators
    assert ada.habit == "better, A" and bob.habit == ""


def test_rankings_agree_unless_two_answers_are_swapped(store: Store) -> None:
    item = ranking(count=3)
    store.add([item])
    for name, ranks in (("ada", [1, 2, 3]), ("bob", [1, 1, 2]), ("cyd", [3, 2, 1])):
        say(store, name, item, (0, 1, 2), payload={"ranks": ranks})
    report = quality(store)
    assert report.annotators[0].others and report.annotators[0].others["mean"] == 0.5


def test_the_page_shows_agreement(tmp_path: Path) -> None:
    """Agreement with intervals, by question and by annotator."""
    pytest.importorskip("starlette")
    from tests.apps.label.pages import application, opened

    said = {"a reward": [1.0, 0.0], "<b>judge": [0.0, 1.0]}
    items = [pair(f"p{n}", f"x{n}", "y", gold={"better": 0} if n < 2 else None, opinions=said) for n in range(6)]
    clock = Clock()
    with Store.open(tmp_path / "a.feedback", new=True, clock=clock) as store:
        store.add(items)
        for n, item in enumerate(items):
            say(store, "ada", item)
            say(store, "bob", item, (1, 0) if n == 3 else (0, 1))
            clock.wait(86400)
        ada = opened(*application(store))
        page = ada.client.get("/quality").text
        state = ada.client.get("/quality/state").json()["state"]
        assert f'content="{state}"' in page
        again = ada.client.get("/quality").text
        assert again == page
        say(store, "cyd", items[0])
        assert ada.client.get("/quality/state").json()["state"] > state
        assert "cyd" in ada.client.get("/quality").text and "cyd" not in page
    for text in ("Krippendorff", "pair: how much better", "83%"):
        assert text in page, text


def test_only_reviewers_may_ask_for_the_state(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from tests.apps.label.pages import application, opened

    with Store.open(tmp_path / "a.feedback", new=True) as store:
        app, sessions = application(store, ["ada", "bob"])
        assert opened(app, sessions, "bob").client.get("/quality/state").status_code == 401


def test_quality_is_measured_once_per_state(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add([pair()])
    latest = Latest(store)
    say(store, "ada", pair())
    first = latest.quality()
    assert latest.quality()[1] is first[1] and first[1].labels == 1
    say(store, "bob", pair())
    assert latest.quality()[1].labels == 2


def test_an_empty_store(store: Store) -> None:
    assert quality(store).annotators == []
