"""Whose labels count: those of the people asked for, without people who fail gold items."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from alignkit import BadRow
from alignkit.data.sources import DataSource, DataSpec, load
from alignkit.registry import Component
from alignkit_plugins.people.format import Feedback
from alignkit_plugins.report.data_card import describe
from tests.stores import event, opened, pair


def row(
    number: int, *, final: int | None = None, gold: bool = False, task: str = "pair", **said: Any
) -> Any:
    item = {
        "task": task,
        "prompt": [{"role": "user", "content": f"Hi {number}"}],
        "responses": ["one", "two"],
    }
    labels = {
        who: {"better": side, "margin": "better"} if isinstance(side, int) else side
        for who, side in said.items()
    }
    votes = [{"annotator": who, "label": label} for who, label in labels.items()]
    more = ({} if final is None else {"final": {"better": final}}) | (
        {"gold": True} if gold else {}
    )
    return number, {"feedback": 1, "item": item, "votes": votes, **more}


def chosen(rows: list[Any], least: float) -> tuple[dict[int, set[str]], str]:
    """The people whose votes are left, by row, and the notes."""
    feedback = Feedback(Feedback.Options(min_gold=least))
    found = {
        n: {vote["annotator"] for vote in one["votes"]} for n, one in feedback.rows(iter(rows))
    }
    return found, "\n".join(feedback.notes)


def test_gold_items_decide_who_is_left_out() -> None:
    gold = [row(n, final=0, gold=True, ada=0, bob=int(n < 3), dan=0) for n in range(9)]
    # One of them is adjudicated, which is no gold.
    gold += [row(9, final=0, gold=True, ada=1, eve=1), row(10, final=0, bob=1)]
    rest = [row(20, ada=0, bob=1, eve=0), row(21, bob=1)]
    votes, notes = chosen([*gold, *rest], 0.8)
    assert votes[20] == {"ada", "eve"} and 21 not in votes  # ada: 9 of 10; bob: 6 of 9
    assert "left out, gold below 80%: bob 6 of 9" in notes
    assert "kept, under 5 gold items: eve 0 of 1" in notes
    assert votes[0] == {"ada", "dan"} and votes[10] == set()  # what is settled stays
    assert chosen([*gold, *rest], 0.6)[0][21] == {"bob"}


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        ({}, "'min_gold' needs gold items .* --gold FILE"),
        ({"final": 0, "gold": True}, "leaves nobody; gold items right: ada 0 of 5"),
    ],
)
def test_options_that_do_not_suit_the_labels(gold: Any, fault: str) -> None:
    with pytest.raises(BadRow, match=fault):
        chosen([row(n, ada=1, **gold) for n in range(5)], 0.5)


def test_rows_that_cannot_be_read_are_left_to_the_format() -> None:
    item = {"task": "ranking"}
    damaged = [(5, BadRow("no JSON")), (6, {"feedback": 1, "item": item, "votes": [{"label": {}}]})]
    gold = [row(n, final=0, gold=True, ada=0) for n in range(5)]
    assert (
        list(Feedback(Feedback.Options(min_gold=0.5)).rows(iter([*damaged, *gold])))[:2] == damaged
    )


def source(path: Path, **options: Any) -> Any:
    from alignkit.plugins import load_plugins

    registration = load_plugins().get("format", "feedback")
    found = DataSource(path=path).in_format(
        Component("format", "feedback", registration, Feedback.Options(**options))
    )
    return load(
        DataSpec((found,)),
        formats={"feedback": Feedback},
        seed=0,
        commit=Mock(),
        stage_data=lambda stage: path,
    )


def test_a_run_says_who_was_left_out(tmp_path: Path) -> None:
    gold = [pair(f"gold {n}", gold={"better": 0, "margin": "better"}) for n in range(5)]
    item = pair("Hi")
    with opened(tmp_path, item, *gold) as store:
        for who, side in (("ada", "A"), ("bob", "B")):
            for one in (item, *gold):
                store.submit(event(one, {"side": side, "margin": "better"}, who=who, order=(0, 1)))
    path = tmp_path / "labels.feedback"
    loaded = source(path, min_gold=0.8)
    assert loaded.groups[0].pairs[0].better == 0
    note = "left out, gold below 80%: bob 0 of 5"
    assert list(loaded.sources[0].notes) == [note]
    assert f"read {path}: {note}" in describe(loaded)
