"""What to label next: where rewards contradict each other, people decide first.

A label teaches most where raters contradict each other: one of them is wrong, and nobody knows
which. (Query by committee: Seung, Opper and Sompolinsky 1992.) A reward's preference between two
responses is the share of all pairs of which it is less sure, so that differences of several rewards
can be compared. Two raters disagree as much as minus the product of their preferences, from -1,
where both are sure of the same, to 1. With one reward, the pairs come first of which it is least
sure. The priority of an item is the mean over its pairs of responses. A judge takes part as a
reward, by `rlaif` or `rating`.

Items that come first are no sample of all items: raters agree less with people on them than on
others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.data.group import group_from_json, group_to_json
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import label
from alignkit_plugins.people.items import Item

if TYPE_CHECKING:
    from alignkit.step import StepContext

Gaps = dict[
    tuple[str, int, int], float
]  # (item's id, response, response) -> how much better the first one is


def prioritized(items: Sequence[Item], rewards: Sequence[Any], context: StepContext) -> list[Item]:
    """The items with their priorities. Those with fewer than two responses stay as they are.

    rewards: values of RewardRef options. A run that was killed asks nobody twice. Raises what
    rewards raise.
    """
    several = [item for item in items if len(item.responses) > 1]
    preferences: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for spec in rewards:
        gaps = _gaps(several, spec, context)
        sizes = sorted(map(abs, gaps.values()))
        for two, gap in gaps.items():
            smaller = (bisect_left(sizes, abs(gap)) + bisect_right(sizes, abs(gap))) / (
                2 * len(sizes)
            )
            preferences[two].append(math.copysign(smaller, gap) if gap else 0.0)
    urgency: dict[str, list[float]] = defaultdict(list)
    for (item_id, *_), (first, *others) in preferences.items():
        pairs = combinations([first, *others], 2) if others else [(first, math.copysign(1, first))]
        urgency[item_id].append(fmean(-one * other for one, other in pairs))
    return [
        replace(item, priority=round(fmean(urgency[item.id]), 6)) if item.id in urgency else item
        for item in items
    ]


def _gaps(items: Sequence[Item], spec: Any, context: StepContext) -> Gaps:
    """How much better a reward finds each response than each other one of its item."""
    name, scorer = label(spec), context.scorer(spec)
    context.say(f"{context.out.name}: {name} scores the responses of {len(items)} items")

    def score(rows: Sequence[str]) -> list[list[float | None]]:
        groups = scorer.score([group_from_json(row) for row in rows])
        return [[response.scores[REWARD_KEY] for response in group.responses] for group in groups]

    gaps: Gaps = {}
    scores = context.map(f"opinions-{name}", [group_to_json(item.group) for item in items], score)
    for item, row in zip(items, scores, strict=True):
        for (i, one), (j, other) in combinations(enumerate(row), 2):
            if one is not None and other is not None:
                gaps[item.id, i, j] = one - other
    return gaps
