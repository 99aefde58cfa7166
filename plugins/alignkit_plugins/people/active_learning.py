"""What to label next: where rewards and judges contradict each other, people decide first.

A label teaches most where raters contradict each other: one of them is wrong, and nobody knows which. (Query by
committee: Seung, Opper and Sompolinsky 1992.) A rater's preference between two responses is the share of all pairs of
which it is less sure, so that differences in reward and probabilities of a judge can be compared. Two raters disagree
as much as minus the product of their preferences, from -1, where both are sure of the same, to 1. With one rater, the
pairs come first of which it is least sure. The priority of an item is the mean over its pairs of responses.

Items that come first are no sample of all items: raters agree less with people on them than on others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.data.group import Group, group_from_json, group_to_json
from alignkit.data.spoken import all_turns
from alignkit.evaluation.judge_card import judge_names, mapped
from alignkit.evaluation.reward_columns import label
from alignkit.judges import CheckedJudge
from alignkit.reward import REWARD_KEY
from alignkit_plugins.people.items import Item, response_of

if TYPE_CHECKING:
    from alignkit.step import StepContext

Gaps = dict[tuple[str, int, int], float]  # (item's id, response, response) -> how much better the first one is


def prioritized(
    items: Sequence[Item], rewards: Sequence[Any], judges: Sequence[Any], context: StepContext
) -> list[Item]:
    """The items with their priorities. Those with fewer than two responses stay as they are.

    rewards, judges: values of RewardRef and JudgeRef options. A run that was killed asks nobody twice. Raises what
    rewards and judges raise.
    """
    several = [item for item in items if len(item.responses) > 1]
    raters = [_of_reward(several, spec, context) for spec in rewards]
    named = zip(judge_names(judges), judges, strict=True)
    raters += [_of_judge(several, name, part, context) for name, part in named]
    preferences: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for gaps in raters:
        for place, preference in _preferences(gaps).items():
            preferences[place].append(preference)
    urgency: dict[str, list[float]] = defaultdict(list)
    for (item_id, *_), each in preferences.items():
        urgency[item_id].append(_urgency(each))
    return [replace(item, priority=round(fmean(urgency[item.id]), 6)) if item.id in urgency else item for item in items]


def _preferences(gaps: Gaps) -> Mapping[tuple[str, int, int], float]:
    """For each gap, the share of gaps that are smaller, with its sign; equal ones count half."""
    sizes = sorted(map(abs, gaps.values()))
    result = {}
    for place, gap in gaps.items():
        share = (bisect_left(sizes, abs(gap)) + bisect_right(sizes, abs(gap))) / (2 * len(sizes))
        result[place] = share * ((gap > 0) - (gap < 0))
    return result


def _urgency(preferences: Sequence[float]) -> float:
    """How much a label of two responses is needed, from what each rater prefers."""
    if len(preferences) == 1:
        return -abs(preferences[0])
    return fmean(-one * other for one, other in combinations(preferences, 2))


def _of_reward(items: Sequence[Item], spec: Any, context: StepContext) -> Gaps:
    name, scorer = label(spec), context.scorer(spec)
    context.say(f"{context.out.name}: {name} scores the responses of {len(items)} items")

    def score(rows: Sequence[str]) -> list[list[float | None]]:
        groups = scorer.score([group_from_json(row) for row in rows])
        return [[response.scores[REWARD_KEY] for response in group.responses] for group in groups]

    gaps: Gaps = {}
    scores = context.map(f"opinions-{name}", [group_to_json(_group(item)) for item in items], score)
    for item, row in zip(items, scores, strict=True):
        for (i, one), (j, other) in combinations(enumerate(row), 2):
            if one is not None and other is not None:
                gaps[item.id, i, j] = one - other
    return gaps


def _of_judge(items: Sequence[Item], name: str, part: Any, context: StepContext) -> Gaps:
    """Half of the pairs are asked about the other way around, so that a judge that prefers a place prefers no side."""
    places, questions = [], []
    for item in items:
        texts = [all_turns(response_of(answer)) for answer in item.responses]
        for i, j in combinations(range(len(texts)), 2):
            first, second = (j, i) if int(item.id[-1], 16) % 2 else (i, j)
            places.append((item.id, first, second))
            questions.append((list(item.prompt), texts[first], texts[second]))
    context.say(f"{context.out.name}: {name} compares {len(questions)} pairs of responses")
    verdicts = mapped(CheckedJudge(part, context).compare, f"opinions-{name}", context.map)(questions)
    gaps: Gaps = {}
    for (item_id, first, second), verdict in zip(places, verdicts, strict=True):
        if verdict.p_first is not None:
            gap = verdict.p_first - 0.5
            gaps[item_id, min(first, second), max(first, second)] = gap if first < second else -gap
    return gaps


def _group(item: Item) -> Group:
    return Group(item.prompt, tuple(map(response_of, item.responses)), meta=dict(item.meta), tools=item.tools)
