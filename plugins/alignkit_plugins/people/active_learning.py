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
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.contract.reward import REWARD_KEY
from alignkit.data.group import group_from_json, group_to_json
from alignkit_plugins.compare.comparison import label
from alignkit_plugins.people.items import Item

if TYPE_CHECKING:
    from alignkit.contract.step import StepContext

# (item's id, response, response) -> how much better the first one is
Gaps = dict[tuple[str, int, int], float]


def prioritized(items: Sequence[Item], rewards: Sequence[Any], context: StepContext) -> list[Item]:
    """The items with their priorities. Those with fewer than two responses stay as they are.

    rewards: values of RewardRef options. A run that was killed asks nobody twice. Raises what
    rewards raise.
    """
    from scipy.stats import rankdata

    preferences: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for spec in rewards:
        gaps = _gaps(items, spec, context)
        ranks = rankdata(list(map(abs, gaps.values())))
        for (two, gap), rank in zip(gaps.items(), ranks, strict=True):
            share = (rank - 0.5) / len(gaps)
            preferences[two].append(math.copysign(share, gap) if gap else 0.0)
    urgency: dict[str, list[float]] = defaultdict(list)
    for (item_id, *_), raters in preferences.items():
        sure = [(raters[0], math.copysign(1, raters[0]))]  # the only rater
        urgency[item_id].append(fmean(-a * b for a, b in list(combinations(raters, 2)) or sure))
    priorities = {name: round(fmean(found), 6) for name, found in urgency.items()}
    return [replace(item, priority=priorities.get(item.id, item.priority)) for item in items]


def _gaps(items: Sequence[Item], spec: Any, context: StepContext) -> Gaps:
    """How much better a reward finds each response than each other one of its item."""
    name, scorer = label(spec), context.scorer(spec)
    context.say(f"{context.out.name}: {name} scores the responses of {len(items)} items")

    def score(rows: Sequence[str]) -> list[list[float | None]]:
        scored = []
        for group in scorer.score(list(map(group_from_json, rows))):
            scored.append([response.scores[REWARD_KEY] for response in group.responses])
        return scored

    several = [item for item in items if len(item.responses) > 1]
    gaps: Gaps = {}
    rows = [group_to_json(item.group) for item in several]
    scores = context.map(f"opinions-{name}", rows, score)
    for item, row in zip(several, scores, strict=True):
        for i, j in combinations(range(len(row)), 2):
            if row[i] is not None and row[j] is not None:
                gaps[item.id, i, j] = row[i] - row[j]
    return gaps
