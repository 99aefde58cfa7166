"""Held-out examples, by which `evaluate` measures policies without sampling: demonstrations, and
pairs or rankings.

Demonstrations give the loss of the next token in nats, and the share of tokens that are the
likeliest ones, over all response tokens. Pairs give the share whose better response became more
likely against the base model than the worse one, log p(better)/p_base(better) > log
p(worse)/p_base(worse), the accuracy of DPO's implicit reward (Rafailov et al. 2023,
arXiv:2305.18290) with the base model as the reference. A coin, and the base model itself, have 50%.
The unit is a conversation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from alignkit import DataError, Group, Response, StepContext
from alignkit.data.group import (
    preview,
    resolved_pairs,
    responses_of,
    why_not_demonstration,
    with_responses,
)
from alignkit.evaluation import held_out
from alignkit.evaluation.split import opening
from alignkit_plugins.compare.comparison import UNIT
from alignkit_plugins.compare.rows import PAIRS, TOKENS
from alignkit_plugins.compare.scores import OUTCOME, Measure, Scale, Scores, scores_of
from alignkit_plugins.compare.verdicts import LONGER_IS_BETTER, SHORTER_IS_BETTER

if TYPE_CHECKING:
    from torch import Tensor

LOSS = "next-token loss"
METRICS = (PAIRS, LONGER_IS_BETTER, SHORTER_IS_BETTER, TOKENS, LOSS)

# An example's sums by metric, with the number of its tokens or pairs
Sums = dict[str, tuple[float, int]]
Logprobs = Callable[[str], "Sequence[Tensor]"]


def usable(groups: Sequence[Group]) -> list[Group]:
    """The comparisons; of a source without any, the demonstrations. Raises DataError if there are
    neither.
    """
    compared = {group.origin and group.origin.source for group in groups if resolved_pairs(group)}
    kept = list[Group]()
    for group in groups:
        alone = (group.origin and group.origin.source) not in compared
        if resolved_pairs(group) or (alone and not why_not_demonstration(group)):
            kept.append(group)
    if groups and not kept:
        first = groups[0]
        raise DataError(
            f"{first.origin or 'a row'}: examples are demonstrations, pairs or rankings, but the "
            f"row {preview(first)} {why_not_demonstration(first)}",
            option=("examples",),
        )
    return kept


def measured(
    groups: Sequence[Group], policies: Mapping[str, str], context: StepContext
) -> list[Group]:
    """The examples with a response of each policy that has its scores, by METRICS and as OUTCOME.

    An example that does not fit is dropped for all. policies: the model that each name means.
    """
    pairs, demonstrations = list[Group](), list[Group]()
    for group in groups:
        if resolved_pairs(group):
            pairs.append(group)
        else:
            demonstrations.append(group)
    # Cached, because each policy is compared with the base model.
    logprobs = cache(lambda role: context.models[role].logprobs(pairs))
    responses: list[list[Response]] = [[] for _ in groups]
    dropped = set[int]()
    for policy, role in policies.items():
        context.say(f"{context.out.name}: {policy} reads {len(groups)} held-out examples")
        of_pairs = iter(_pairs(pairs, role, context.base_of(role) or role, logprobs))
        of_others = iter(_demonstrations(demonstrations, role, context))
        sums = list[Sums | None]()
        for place, group in enumerate(groups):
            sums.append(next(of_pairs if resolved_pairs(group) else of_others))
            if sums[-1] == {}:
                dropped.add(place)
        for own, scores in zip(responses, _scores(sums), strict=True):
            own.append(Response("", source=policy, scores=scores))
    scored = []
    for place, group in enumerate(groups):
        if place not in dropped:
            meta = {UNIT: opening(group), **group.meta}
            read = tuple(responses[place])
            scored.append(with_responses(group, read, pairs=None, meta=meta))
    if dropped:
        context.say(f"{context.out.name}: no room in max_length for {len(dropped)} examples")
    return scored


def _demonstrations(groups: Sequence[Group], role: str, context: StepContext) -> list[Sums]:
    sums = list[Sums]()
    for logprobs, likeliest in context.models[role].predictions(groups) if groups else ():
        # A token that does not count has 0 in both
        tokens = int(((logprobs != 0) | (likeliest != 0)).sum())
        loss, right = -float(logprobs.sum()), float(likeliest.sum())
        sums.append({LOSS: (loss, tokens), TOKENS: (right, tokens)} if tokens else {})
    return sums


def _pairs(
    groups: Sequence[Group], role: str, base: str, logprobs: Logprobs
) -> Sequence[Sums | None]:
    """The sums of each group; None if the role's base model is not known. logprobs: returns those
    of all responses by a role.
    """
    if base == role != "base":
        return [None] * len(groups)
    both = zip(logprobs(role), logprobs(base), strict=True)
    sums = list[Sums]()
    for group in groups:
        gains, lengths = list[float](), list[int]()
        for _ in group.responses:
            ours, theirs = next(both)
            gains.append(float(ours.double().sum() - theirs.double().sum()))
            lengths.append(len(ours))
        sums.append(_of_pairs(group, gains, lengths))
    return sums


def _of_pairs(group: Group, gains: Sequence[float], lengths: Sequence[int]) -> Sums:
    """gains: of the responses, their log-probabilities against those by the base model. lengths: in
    tokens.
    """
    sums: Sums = {}
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p == 0.5 or 0 in (lengths[better], lengths[worse]):
            continue
        gain, longer = gains[better] - gains[worse], lengths[better] - lengths[worse]
        metrics = [PAIRS]
        if longer:
            metrics.append(LONGER_IS_BETTER if longer > 0 else SHORTER_IS_BETTER)
        for metric in metrics:
            right, count = sums.get(metric, (0.0, 0))
            sums[metric] = (right + (0.5 if gain == 0 else float(gain > 0)), count + 1)
    return sums


def _scores(sums: Sequence[Sums | None]) -> list[dict[str, float | None]]:
    """Values whose mean is that over all tokens or pairs, and whose spread is that of the mean, as
    for a stage's own.

    An example's value depends on the others, so its own mean is stored with it.
    """
    scores: list[dict[str, float | None]] = [{} for _ in sums]
    for name in METRICS:
        known = {place: one[name] for place, one in enumerate(sums) if one and name in one}
        if known:
            values = held_out.values_of([{"accuracy": known}])["accuracy"]
            for (place, (total, count)), value in zip(known.items(), values, strict=True):
                scores[place] |= {name: value, OUTCOME.format(name): total / count}
    return scores


def scale_of(name: str) -> Scale | None:
    """The scale of one of METRICS. The base model's scores of pairs are ties, which are no shares of
    hits: shares have none.
    """
    return Scale(None, bounds=(0.0, math.inf)) if name == LOSS else None


def scores(
    groups: Sequence[Group], policies: Sequence[str], trained_on: Mapping[str, bool | None]
) -> Scores:
    """The scores of policies by METRICS. groups: of `measured`. trained_on: as in Row, by
    policy.
    """
    there = set[str]().union(*(response.scores for response in responses_of(groups)))
    measures = dict[str, Measure]()
    for name in METRICS:
        if name in there:
            loss = name == LOSS
            measures[name] = Measure(
                scale=scale_of(name),
                lower=loss,
                percent=not loss,
                tested=True,
                trained_on=trained_on,
            )
    return scores_of(groups, policies, measures)
