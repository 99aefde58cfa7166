"""What to label next: the items on which rewards disagree come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stores import pair, ranking, turn

from alignkit.data.group import Group
from alignkit_plugins.people.active_learning import prioritized
from alignkit_plugins.people.items import Item

Scores = dict[str, float | None]  # of a text


def rated(items: Sequence[Item], *rewards: Scores) -> list[Item]:
    """The items with their priorities by rewards, each of which scores texts as a table says."""

    def scorer(spec: Any) -> Any:
        def score(groups: Sequence[Group]) -> list[Group]:
            return [
                replace(
                    group,
                    responses=tuple(
                        replace(r, scores={"reward": spec.of[r.text]}) for r in group.responses
                    ),
                )
                for group in groups
            ]

        return SimpleNamespace(score=score)

    specs = [
        SimpleNamespace(kind="plugin", name=f"reward{n}", of=table)
        for n, table in enumerate(rewards)
    ]
    context: Any = SimpleNamespace(
        out=Path("ask"),
        stage="ask",
        seed=0,
        say=lambda line: None,
        scorer=scorer,
        map=lambda name, rows, function: list(function(rows)),
    )
    return prioritized(items, specs, context)


def priorities(gaps: Sequence[Sequence[float]]) -> list[float]:
    """Of pairs, by how much each rater finds the first response better: a list of gaps for each
    pair.
    """
    items = [pair(f"{n}", f"first {n}", f"second {n}") for n in range(len(gaps))]
    tables = [
        {f"first {n}": row[rater] for n, row in enumerate(gaps)}
        | {f"second {n}": 0.0 for n in range(len(gaps))}
        for rater in range(len(gaps[0]))
    ]
    return [item.priority for item in rated(items, *tables)]


def test_a_planted_disagreement_comes_first() -> None:
    both_sure, both_unsure, one_unsure, disagree = priorities(
        [(6.0, 0.8), (0.1, 0.04), (2.0, 0.0), (2.5, -0.6)]
    )
    assert disagree > 0 >= one_unsure > both_unsure > both_sure


def test_one_rater_puts_the_smallest_margins_first() -> None:
    found = priorities([[2.0], [-0.1], [0.5], [-3.0]])
    assert sorted(range(4), key=lambda place: -found[place]) == [1, 2, 0, 3] and all(
        -1 <= each < 0 for each in found
    )


def test_the_scale_of_a_reward_does_not_matter() -> None:
    gaps = [(1.0, -0.8), (-3.0, -0.2), (0.5, 0.6)]
    assert priorities(gaps) == priorities([(100 * one, other) for one, other in gaps])


def test_rankings_count_all_their_pairs_and_items_without_scores_keep_their_priority() -> None:
    items = [ranking(text, 3, priority=7.0) for text in ("alike", "one swapped", "reversed")]
    items = [
        replace(item, responses=tuple(f"{item.prompt[0]['content']} {n}" for n in range(3)))
        for item in items
    ]
    alone = Item("thumb", (turn("Good?"),), ("yes",), priority=3.0)
    unknown = pair("unknown", "a", "b", priority=2.0)
    texts = [text for item in items for text in item.responses]
    first: Scores = dict(zip(map(str, texts), [3.0, 2.0, 1.0] * 3, strict=True))
    second: Scores = dict(
        zip(map(str, texts), [3.0, 2.0, 1.0, 2.0, 3.0, 1.0, 1.0, 2.0, 3.0], strict=True)
    )
    missing: Scores = {"a": None, "b": 1.0}
    found = [
        item.priority for item in rated([*items, alone, unknown], first | missing, second | missing)
    ]
    assert found[0] < found[1] < 0 < found[2] and found[3:] == [3.0, 2.0]
