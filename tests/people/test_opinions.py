"""What to label next: the items on which rewards disagree come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stores import pair, ranking, several

from alignkit.data.group import Group
from alignkit_plugins.people.active_learning import prioritized
from alignkit_plugins.people.items import Item


def scorer(scores: Any) -> Any:
    """What a run makes of a reward: here its scores of the responses, in their order."""

    def score(groups: Sequence[Group]) -> list[Group]:
        left, found = iter(scores.of), []
        for group in groups:
            answers = [replace(one, scores={"reward": next(left)}) for one in group.responses]
            found.append(replace(group, responses=tuple(answers)))
        return found

    return SimpleNamespace(score=score)


def priorities(items: Sequence[Item], *rewards: Sequence[float | None]) -> list[float]:
    """Of the items, by rewards that score the responses of those that have several."""
    specs = [
        SimpleNamespace(kind="plugin", name=f"reward{n}", of=scores)
        for n, scores in enumerate(rewards)
    ]
    context: Any = SimpleNamespace(
        out=Path("ask"),
        say=lambda line: None,
        scorer=scorer,
        map=lambda name, rows, function: list(function(rows)),
    )
    return [item.priority for item in prioritized(items, specs, context)]


def of_pairs(*gaps: Sequence[float]) -> list[float]:
    """By how much each rater finds the first response better: their gaps for each pair."""
    items = [pair(f"{n}") for n in range(len(gaps))]
    scores = []
    for rater in zip(*gaps, strict=True):
        scores.append([score for gap in rater for score in (gap, 0.0)])
    return priorities(items, *scores)


def test_a_planted_disagreement_comes_first_whatever_the_scale_of_a_reward() -> None:
    gaps = [(6.0, 0.8), (0.1, 0.04), (2.0, 0.0), (2.5, -0.6)]
    found = of_pairs(*gaps)
    both_sure, both_unsure, one_unsure, disagree = found
    assert disagree > 0 >= one_unsure > both_unsure > both_sure
    assert found == of_pairs(*((100 * one, other) for one, other in gaps))


def test_one_rater_puts_the_smallest_margins_first() -> None:
    assert of_pairs([2.0], [-0.1], [0.5], [-3.0]) == [-0.625, -0.125, -0.375, -0.875]


def test_rankings_count_all_their_pairs_and_items_without_scores_keep_their_priority() -> None:
    items = [ranking(text, 3, priority=7.0) for text in ("alike", "one swapped", "reversed")]
    items += [several("thumb", "Good?", 1, priority=3.0), pair(priority=2.0)]
    unknown = [None, 1.0]
    found = priorities(
        items,
        [*([3.0, 2.0, 1.0] * 3), *unknown],
        [3.0, 2.0, 1.0, 2.0, 3.0, 1.0, 1.0, 2.0, 3.0, *unknown],
    )
    assert found[0] < found[1] < 0 < found[2] and found[3:] == [3.0, 2.0]
