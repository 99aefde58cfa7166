"""Reviews after InstructGPT's page: the ranks teach a reward model, scores and flags are
columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, review, reviewed

from alignkit.data.group import Group, Response
from alignkit.errors import BadRow
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.items import items_of
from alignkit_plugins.people.labels import BadLabel, agrees, canonical
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import groups_of, labeled

SHOWN = reviewed([2, 1, 2], [3, 7, 4], ["harmful", "invented"])


def read(store: Store) -> Group:
    (entry,) = labeled(store)
    (group,) = groups_of(entry)
    return group


def test_a_label_in_the_items_own_order() -> None:
    order = (2, 0, 1)
    label = canonical(SHOWN, order)
    assert label == reviewed([1, 2, 2], [7, 4, 3], [], [], ["harmful", "invented"])


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [2, 2, 2]},
        {"scores": [8, 1, 1]},
        {"scores": [{"overall": 5}] * 3},
        {"flags": [[], []]},
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
        group = read(store)
        assert [answer.rank for answer in group.responses] == [2.0, 1.0, 2.0] and not group.pairs
        assert group.meta == {
            "source": "x",
            "overall": [3, 7, 4],
            "flags": [["invented", "harmful"], [], []],
        }
        store.submit(event(item, reviewed([3, 1, 2], [2, 6, 5], ["harmful"]), who="bob"))
        group = read(store)
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
        (question,) = agreement(labeled(store))
        assert question["question"] == "review"


def test_gold_items_need_ranks_only(tmp_path: Path) -> None:
    answers = [Response(text=text, rank=rank) for rank, text in enumerate(("good", "fair", "poor"))]
    group = Group(review().prompt, tuple(answers))
    (gold,) = items_of([group], "review", gold=True)
    assert gold.gold == {"ranks": [1, 2, 3]}
    assert agrees(reviewed([1, 1, 2], [1, 1, 1]), gold.gold)
    assert not agrees(reviewed([2, 1, 3], [7, 4, 1]), gold.gold)
    with opened(tmp_path, gold) as store:
        store.submit(event(gold, reviewed([2, 1, 3], [7, 4, 1])))
        assert [answer.rank for answer in read(store).responses] == [1.0, 2.0, 3.0]
    with pytest.raises(BadRow, match="2 to 9 responses, not 1"):
        review(count=1).checked()
