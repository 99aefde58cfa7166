"""Reviews after InstructGPT's page: the ranks teach a reward model, scores and flags are
columns.
"""

from __future__ import annotations

from pathlib import Path

from stores import event, opened, review, reviewed

from alignkit.data.group import Group, Response
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.items import items_of
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import groups_of, labeled

SHOWN = reviewed([2, 1, 2], [3, 7, 4], ["harmful", "invented"])


def read(store: Store) -> Group:
    (entry,) = labeled(store)
    (group,) = groups_of(entry)
    return group


def test_ranks_are_learned_and_the_rest_are_columns(tmp_path: Path) -> None:
    item = review(meta={"source": "x"})
    with opened(tmp_path, item) as store:
        store.submit(event(item, SHOWN))
        group = read(store)
        assert [answer.rank for answer in group.responses] == [2.0, 1.0, 2.0] and not group.pairs
        flags: list[list[str]] = [["invented", "harmful"], [], []]
        assert group.meta == {"source": "x", "overall": [3, 7, 4], "flags": flags}
        store.submit(event(item, reviewed([3, 1, 2], [2, 6, 5], ["harmful"]), who="bob"))
        group = read(store)
        pairs = [(pair.better, pair.worse, pair.p) for pair in group.pairs or ()]
        assert pairs == [(1, 0, 1.0), (2, 0, 1.0), (1, 2, 1.0)]
        assert group.meta["overall"] == [2.5, 6.5, 4.5]
        assert group.meta["flags"] == [["harmful"], [], []]
        assert [question["question"] for question in agreement(labeled(store))] == ["review"]


def test_gold_items_need_ranks_only(tmp_path: Path) -> None:
    answers = [Response(text=text, rank=rank) for rank, text in enumerate(("good", "fair", "poor"))]
    (gold,) = items_of([Group(review().prompt, tuple(answers))], "review", gold=True)
    assert gold.gold == {"ranks": [1, 2, 3]}
    with opened(tmp_path, gold) as store:
        store.submit(event(gold, reviewed([2, 1, 3], [7, 4, 1])))
        assert [answer.rank for answer in read(store).responses] == [1.0, 2.0, 3.0]
