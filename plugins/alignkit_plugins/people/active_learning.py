"""What to label next: rewards and judges say what they think of the responses, and where they disagree, people decide.

A label teaches most where the raters contradict each other: one rater is wrong, and nobody knows which. (Query by
committee: Seung, Opper and Sompolinsky 1992.) A rater's preference between two responses is the share of all pairs of
which it is less sure, so that differences in reward and probabilities of a judge can be compared. Two raters disagree
as much as minus the product of their preferences, from -1, where both are sure of the same, to 1. With one rater, the
pairs come first of which it is least sure. The priority of an item is the mean over its pairs of responses.

Items that come first are no sample of all items: raters agree less with people on them than on others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.data.group import Group, group_from_json, group_to_json
from alignkit.evaluation.judge_card import judge_names, mapped
from alignkit.evaluation.reward_columns import label
from alignkit.judges import CheckedJudge
from alignkit.reward import REWARD_KEY
from alignkit_plugins.people.items import Answer, Item, response_of

if TYPE_CHECKING:
    from alignkit.step import StepContext

Opinion = list[float | None]  # a number for each response; higher is better


def rated(items: Sequence[Item], rewards: Sequence[Any], judges: Sequence[Any], context: StepContext) -> list[Item]:
    """The items with the opinions of rewards and judges, and the priority that follows from all opinions.

    rewards, judges: values of RewardRef and JudgeRef options. Items with fewer than two responses stay as they are. A
    run that was killed asks nobody twice. Raises what rewards and judges raise.
    """
    several = [item for item in items if len(item.responses) > 1]
    said: list[dict[str, Opinion]] = [{} for _ in several]
    for spec in rewards:
        for found, opinion in zip(said, _of_reward(several, spec, context), strict=True):
            found[label(spec)] = opinion
    for name, part in zip(judge_names(judges), judges, strict=True):
        for found, opinion in zip(said, _of_judge(several, name, part, context), strict=True):
            found[name] = opinion
    new = {item.id: {**item.opinions, **found} for item, found in zip(several, said, strict=True)}
    return prioritized([replace(item, opinions=new.get(item.id, item.opinions)) for item in items])


def prioritized(items: Sequence[Item]) -> list[Item]:
    """The items with the priority that follows from their opinions; those without one keep theirs."""
    gaps: dict[str, list[float]] = {}
    for item in items:
        for name, opinion in item.opinions.items():
            gaps.setdefault(name, []).extend(abs(gap) for _, gap in _gaps(opinion))
    for known in gaps.values():
        known.sort()
    found = [_priority(item, gaps) for item in items]
    return [
        item if priority is None else replace(item, priority=round(priority, 6))
        for item, priority in zip(items, found, strict=True)
    ]


def _gaps(opinion: Sequence[float | None]) -> Iterable[tuple[tuple[int, int], float]]:
    """How much better the first of each two responses is."""
    for i, j in combinations(range(len(opinion)), 2):
        one, other = opinion[i], opinion[j]
        if one is not None and other is not None:
            yield (i, j), one - other


def _priority(item: Item, known: Mapping[str, Sequence[float]]) -> float | None:
    """known: the sizes of all differences by each rater, sorted. None without an opinion on two responses."""
    preferences: dict[tuple[int, int], list[float]] = {}
    for name, opinion in item.opinions.items():
        for pair, gap in _gaps(opinion):
            preferences.setdefault(pair, []).append(_sure(gap, known[name]))
    return fmean(map(_urgency, preferences.values())) if preferences else None


def _sure(gap: float, known: Sequence[float]) -> float:
    """The share of differences that are smaller, with the sign of this one; equal ones count half."""
    if gap == 0:
        return 0.0
    size = abs(gap)
    share = (bisect_left(known, size) + bisect_right(known, size)) / (2 * len(known))
    return share if gap > 0 else -share


def _urgency(preferences: Sequence[float]) -> float:
    """How much a label of two responses is needed, from what each rater prefers."""
    if len(preferences) == 1:
        return -abs(preferences[0])
    return fmean(-one * other for one, other in combinations(preferences, 2))


# Asking


def _of_reward(items: Sequence[Item], spec: Any, context: StepContext) -> list[Opinion]:
    """A reward's scores of the responses."""
    name, scorer = label(spec), context.scorer(spec)
    context.say(f"{context.out.name}: {name} scores the responses of {len(items)} items")

    def score(rows: Sequence[str]) -> list[Opinion]:
        groups = scorer.score([group_from_json(row) for row in rows])
        return [[response.scores[REWARD_KEY] for response in group.responses] for group in groups]

    return context.map(f"opinions-{name}", [group_to_json(_group(item)) for item in items], score)


def _of_judge(items: Sequence[Item], name: str, part: Any, context: StepContext) -> list[Opinion]:
    """A judge's probability that a response is better than another one of its item, in the mean over these.

    Half of the pairs are asked about the other way around, so that a judge that prefers a place prefers no side.
    """
    places, questions = [], []
    for number, item in enumerate(items):
        for pair in combinations(range(len(item.responses)), 2):
            first, second = pair[::-1] if int(item.id[-1], 16) % 2 else pair
            places.append((number, first, second))
            questions.append((list(item.prompt), _text(item.responses[first]), _text(item.responses[second])))
    context.say(f"{context.out.name}: {name} compares {len(questions)} pairs of responses")
    verdicts = mapped(CheckedJudge(part, context).compare, f"opinions-{name}", context.map)(questions)
    shares: list[list[list[float]]] = [[[] for _ in item.responses] for item in items]
    for (number, first, second), verdict in zip(places, verdicts, strict=True):
        if verdict.p_first is not None:
            shares[number][first].append(verdict.p_first)
            shares[number][second].append(1 - verdict.p_first)
    return [[fmean(won) if won else None for won in each] for each in shares]


def _group(item: Item) -> Group:
    return Group(item.prompt, tuple(map(response_of, item.responses)), meta=dict(item.meta), tools=item.tools)


def _text(answer: Answer) -> str:
    """What a response says, without calls of tools."""
    if isinstance(answer, str):
        return answer
    return "\n".join(str(turn.get("content") or "") for turn in answer if turn["role"] == "assistant")
