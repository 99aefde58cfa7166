"""What to label next: the items on which rewards and judges disagree come first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stores import event, opened, pair, ranking, turn

from alignkit.data.group import Group
from alignkit.errors import BadRow
from alignkit_plugins.people.active_learning import prioritized, rated
from alignkit_plugins.people.assignment import next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store


def priorities(*items: Item) -> list[float]:
    return [item.priority for item in prioritized(items)]


def served(store: Store, count: int) -> list[str]:
    """The prompts in the order in which a person gets them."""
    found = []
    for _ in range(count):
        given = next_item(store, "ann")
        assert given is not None
        found.append(given.stored.item.prompt[0]["content"])
        store.submit(event(given.stored.item, order=given.order))
    return found


def test_a_planted_disagreement_is_served_first(tmp_path: Path) -> None:
    opinions: dict[str, dict[str, list[float | None]]] = {
        "both sure": {"helpful": [3.0, -3.0], "judge": [0.9, 0.1]},
        "both unsure": {"helpful": [0.1, 0.0], "judge": [0.52, 0.48]},
        "one unsure": {"helpful": [2.0, 0.0], "judge": [0.5, 0.5]},
        "disagree": {"helpful": [2.5, 0.0], "judge": [0.2, 0.8]},
    }
    items = prioritized([pair(name, opinions=said) for name, said in opinions.items()])
    with opened(tmp_path, pair("nobody knows"), *items) as store:
        assert served(store, 5) == ["disagree", "nobody knows", "one unsure", "both unsure", "both sure"]


def test_one_rater_puts_the_smallest_margins_first() -> None:
    gaps = [2.0, -0.1, 0.5, -3.0]
    found = priorities(*(pair(f"{gap}", opinions={"helpful": [gap, 0.0]}) for gap in gaps))
    assert sorted(gaps, key=lambda gap: -found[gaps.index(gap)]) == [-0.1, 0.5, 2.0, -3.0]
    assert all(-1 <= priority < 0 for priority in found)


def test_the_scale_of_a_reward_does_not_matter() -> None:
    rows = [([1.0, 0.0], [0.1, 0.9]), ([0.0, 3.0], [0.4, 0.6]), ([0.5, 0.0], [0.8, 0.2])]
    items = [pair(f"{n}", opinions={"helpful": r, "judge": p}) for n, (r, p) in enumerate(rows)]
    scaled = [replace(i, opinions={**i.opinions, "helpful": [100 * s for s in i.opinions["helpful"]]}) for i in items]  # type: ignore[operator]
    assert priorities(*items) == priorities(*scaled)


def test_rankings_count_all_their_pairs() -> None:
    alike = ranking("alike", 3, opinions={"helpful": [3.0, 2.0, 1.0], "judge": [0.9, 0.5, 0.1]})
    one = ranking("one", 3, opinions={"helpful": [3.0, 2.0, 1.0], "judge": [0.5, 0.9, 0.1]})
    other = ranking("other", 3, opinions={"helpful": [3.0, 2.0, 1.0], "judge": [0.1, 0.5, 0.9]})
    first, second, third = priorities(alike, one, other)
    assert first < second < 0 < third


@pytest.mark.parametrize("opinions", [{}, {"helpful": [None, 1.0]}, {"helpful": [None, None], "judge": [None, None]}])
def test_without_two_numbers_an_item_keeps_its_priority(opinions: dict[str, Any]) -> None:
    assert priorities(pair(opinions=opinions, priority=7.0)) == [7.0]


def test_labels_where_raters_disagree_find_the_mistakes_of_a_reward() -> None:
    """The reward is wrong on 25% of pairs and the judge, independently, on 20%: of their 35% disagreements, 4 in 7 are
    mistakes of the reward, so the first 35% of labels find 80% of these instead of 35%."""
    draw, wrong = random.Random(0), {}
    items = []
    for number in range(400):
        fooled, careless = draw.random() < 0.25, draw.random() < 0.2
        gap = abs(draw.gauss(0, 1)) * (-1 if fooled else 1)
        p = 0.5 + draw.uniform(0.05, 0.45) * (-1 if careless else 1)
        items.append(pair(f"{number}", opinions={"helpful": [gap, 0.0], "judge": [p, 1 - p]}))
        wrong[items[-1].id] = fooled
    first = sorted(prioritized(items), key=lambda item: -item.priority)[:140]
    assert sum(wrong[item.id] for item in first) / sum(wrong.values()) > 0.75
    assert sum(wrong[item.id] for item in items[:140]) / sum(wrong.values()) < 0.45


def context(scores: Any = None) -> Any:
    """What `rated` uses of a step's context. scores: the reward of a text."""

    def scored(groups: Sequence[Group]) -> list[Group]:
        return [
            replace(g, responses=tuple(replace(r, scores={"reward": scores(r.text)}) for r in g.responses))
            for g in groups
        ]

    return SimpleNamespace(
        out=Path("ask"),
        stage="ask",
        seed=0,
        say=lambda line: None,
        scorer=lambda spec: SimpleNamespace(score=scored),
        map=lambda name, rows, function: list(function(rows)),
    )


def test_rewards_score_and_single_answers_stay() -> None:
    alone = Item("thumb", (turn("Good?"),), ("yes",), priority=3.0)
    reward = SimpleNamespace(kind="plugin", name="length")
    first, second, third = rated([pair(), alone, pair("More", "a", "much longer")], [reward], [], context(len))
    assert first.opinions == {"length": [6, 5]} and third.opinions == {"length": [1, 11]}
    assert second is alone or (second.opinions, second.priority) == ({}, 3.0)
    assert first.priority > third.priority


def test_opinions_are_stored_without_a_new_revision(tmp_path: Path) -> None:
    item = pair(meta={"language": "en"}, opinions={"judge": [0.3, 0.7]})
    with opened(tmp_path, item) as store:
        store.rate([replace(item, meta={}, opinions={"helpful": [1.0, 2.0]}, priority=0.25)])
        stored = store.item(item.id)
        assert stored.item.opinions == {"judge": [0.3, 0.7], "helpful": [1.0, 2.0]}
        assert (stored.item.priority, stored.item.meta, stored.revision) == (0.25, {"language": "en"}, 1)
        with pytest.raises(BadRow, match="'helpful' must hold 2 numbers"):
            store.rate([replace(item, opinions={"helpful": [1.0]})])
