"""Reviews after InstructGPT's page: the ranks teach a reward model, scores and flags are
columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, review, reviewed

from alignkit.data.group import Group, Response
from alignkit.errors import BadRow
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.format import Feedback, FeedbackOptions
from alignkit_plugins.people.items import items_of
from alignkit_plugins.people.label_api import guidelines_now, in_words
from alignkit_plugins.people.labels import BadLabel, agrees, canonical, displayed
from alignkit_plugins.people.votes import disputes, labeled, store_rows

SHOWN = reviewed([2, 1, 2], [3, 7, 4], ["harmful", "invented"])


def read(path: Path, **options: Any) -> Group:
    ((_, row),) = store_rows(path)
    return Feedback(FeedbackOptions(**options)).read(row)


def test_a_label_in_the_items_own_order() -> None:
    order = (2, 0, 1)
    label = canonical(SHOWN, order)
    assert label == reviewed([1, 2, 2], [7, 4, 3], [], [], ["invented", "harmful"])
    assert canonical(displayed(label, order), order) == label
    assert in_words(label).startswith("ranks: A 1, B 2, C 2; scores: A ")


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [2, 2, 2]},
        {"scores": [{"overall": 8}] * 3},
        {"scores": [{"helpful": 5}] * 3},
        {"flags": [[], []]},
        {"flags": [["harmful", "harmful"], [], []]},
        {"flags": [["rude"], [], []]},
        {"flags": None},
    ],
)
def test_a_label_that_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    item = review()
    with opened(tmp_path, item) as store, pytest.raises(BadLabel, match="the label of a review"):
        store.submit(event(item, {**SHOWN, **change}))


def test_ranks_are_learned_and_the_rest_are_columns(tmp_path: Path) -> None:
    item = review(meta={"source": "x"})
    with opened(tmp_path, item) as store:
        store.submit(event(item, SHOWN))
        group = read(store.path)
        assert [answer.rank for answer in group.responses] == [2.0, 1.0, 2.0] and not group.pairs
        assert group.meta == {
            "source": "x",
            "overall": [3, 7, 4],
            "flags": [["invented", "harmful"], [], []],
        }
        store.submit(event(item, reviewed([3, 1, 2], [2, 6, 5], ["harmful"]), who="bob"))
        group = read(store.path)
        assert [(pair.better, pair.worse, pair.p) for pair in group.pairs] == [
            (1, 0, 1.0),
            (2, 0, 1.0),
            (1, 2, 1.0),
        ]
        assert group.meta["overall"] == [2.5, 6.5, 4.5] and group.meta["flags"] == [
            ["harmful"],
            [],
            [],
        ]
        assert len(read(store.path, votes="each").pairs) == 5
        assert not disputes(store)  # a tie contradicts nobody
        (question,) = agreement(labeled(store))
        assert question["question"] == "review"
        store.submit(event(item, reviewed([1, 2, 3], [1, 1, 1]), who="cid"))
        assert [entry.stored.item.id for entry in disputes(store)] == [item.id]
        store.submit(event(item, reviewed([1, 2, 3], [6, 5, 4]), who="ann", kind="adjudicate"))
        group = read(store.path)
        assert [answer.rank for answer in group.responses] == [1.0, 2.0, 3.0] and group.meta[
            "overall"
        ] == [6, 5, 4]


def test_gold_items_need_ranks_only(tmp_path: Path) -> None:
    answers = [Response(text=text, rank=rank) for rank, text in enumerate(("good", "fair", "poor"))]
    group = Group(review().prompt, tuple(answers))
    (gold,) = items_of([group], "review", gold=True)
    assert gold.gold == {"ranks": [1, 2, 3]} and gold.criteria == ("overall",)
    assert agrees(reviewed([1, 1, 2], [1, 1, 1]), gold.gold)
    assert not agrees(reviewed([2, 1, 3], [7, 4, 1]), gold.gold)
    with opened(tmp_path, gold) as store:
        store.submit(event(gold, reviewed([2, 1, 3], [7, 4, 1])))
        assert [answer.rank for answer in read(store.path).responses] == [1.0, 2.0, 3.0]
    with pytest.raises(BadRow, match="2 to 9 responses, not 1"):
        review(count=1).checked()


def test_the_default_guidelines_are_those_of_the_task(tmp_path: Path) -> None:
    with opened(tmp_path, pair("one")) as store:
        assert guidelines_now(store)[1].startswith("# How to label")
        store.ask([review()], "later")
        assert guidelines_now(store)[1].startswith("# How to review")
