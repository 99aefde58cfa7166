"""Held-out examples, by which `evaluate` measures policies without sampling: demonstrations, and
pairs or rankings.

Of demonstrations: the loss of the next token in nats, and the share of tokens that are the
likeliest ones, over all response tokens. Of pairs: the share whose better response became more
likely against the base model than the worse one, log p(better)/p_base(better) > log
p(worse)/p_base(worse), the accuracy of DPO's implicit reward (Rafailov et al. 2023,
arXiv:2305.18290) with the base model as the reference. A coin, and the base model itself, have 50%.
The unit is a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from alignkit import DataError, Group, Response, StepContext
from alignkit.data.group import preview, resolved_pairs, why_not_demonstration
from alignkit.data.sources import opening
from alignkit.evaluation import held_out
from alignkit_plugins.compare.compared import ITS_OWN, has_score, rated
from alignkit_plugins.compare.comparison import UNIT
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.compare.verdicts import LONGER_IS_BETTER, PAIRS, SHORTER_IS_BETTER

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, LOSS = "next tokens right", "next-token loss"
METRICS = (PAIRS, LONGER_IS_BETTER, SHORTER_IS_BETTER, TOKENS, LOSS)

Sums = dict[
    str, tuple[float, int]
]  # of an example, by metric, with the number of its tokens or pairs
Logprobs = Callable[[str], "Sequence[Tensor]"]


def usable(groups: Sequence[Group]) -> list[Group]:
    """The comparisons; of a source without any, the demonstrations. Raises DataError if there are
    neither.
    """
    compared_sources = {
        group.origin and group.origin.source for group in groups if resolved_pairs(group)
    }
    found = []
    for group in groups:
        alone = (group.origin and group.origin.source) not in compared_sources
        if resolved_pairs(group) or (alone and not why_not_demonstration(group)):
            found.append(group)
    if not found and groups:
        first = groups[0]
        raise DataError(
            f"{first.origin or 'a row'}: examples are demonstrations, pairs or rankings, but the "
            f"row {preview(first)} {why_not_demonstration(first)}",
            option=("examples",),
        )
    return found


def measured(
    groups: Sequence[Group], policies: Mapping[str, str], context: StepContext
) -> list[Group]:
    """The examples with a response of each policy that has its scores, by METRICS and as ITS_OWN.

    An example that does not fit is dropped for all. policies: the model that each name means.
    """
    pairs = [group for group in groups if resolved_pairs(group)]
    # Cached, because each policy is compared with the base model.
    logprobs = cache(lambda role: context.models[role].logprobs(pairs))
    others = [group for group in groups if not resolved_pairs(group)]
    sums, scores = dict[str, list[Sums | None]](), dict[str, list[dict[str, float | None]]]()
    for policy, role in policies.items():
        context.say(f"{context.out.name}: {policy} reads {len(groups)} held-out examples")
        of_pairs = iter(_pairs(pairs, role, context.base_of(role) or role, logprobs))
        of_others = iter(_demonstrations(others, role, context))
        sums[policy] = [next(of_pairs if resolved_pairs(group) else of_others) for group in groups]
        scores[policy] = _scores(sums[policy])
    scored = []
    for place, group in enumerate(groups):
        if {} not in [own[place] for own in sums.values()]:
            own = [
                Response("", source=policy, scores=found[place]) for policy, found in scores.items()
            ]
            meta = {UNIT: opening(group, None), **group.meta}
            scored.append(replace(group, responses=tuple(own), pairs=None, meta=meta))
    if dropped := len(groups) - len(scored):
        context.say(
            f"{context.out.name}: dropped {dropped} of {len(groups)} examples: no room in "
            "max_length"
        )
    return scored


def _demonstrations(groups: Sequence[Group], role: str, context: StepContext) -> list[Sums]:
    sums = list[Sums]()
    for logprobs, likeliest in context.models[role].predictions(groups) if groups else ():
        tokens = int(
            ((logprobs != 0) | (likeliest != 0)).sum()
        )  # a token that does not count has 0 in both
        loss, right = (-float(logprobs.sum()), tokens), (float(likeliest.sum()), tokens)
        sums.append({LOSS: loss, TOKENS: right} if tokens else {})
    return sums


def _pairs(
    groups: Sequence[Group], role: str, base: str, logprobs: Logprobs
) -> Sequence[Sums | None]:
    """Of a model whose base model is not known, None. logprobs: of all responses of the groups, by
    a role.
    """
    if base == role != "base":
        return [None] * len(groups)
    both = zip(logprobs(role), logprobs(base), strict=True)
    sums = list[Sums]()
    for group in groups:
        responses = [next(both) for _ in group.responses]
        gains = [float(ours.double().sum() - theirs.double().sum()) for ours, theirs in responses]
        sums.append(_of_pairs(group, gains, [len(ours) for ours, _ in responses]))
    return sums


def _of_pairs(group: Group, gains: Sequence[float], lengths: Sequence[int]) -> Sums:
    """gains: of the responses, their log-probabilities against those by the base model. lengths: in
    tokens.
    """
    found: dict[str, list[float]] = {}
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p == 0.5 or 0 in (lengths[better], lengths[worse]):
            continue
        gain, longer = gains[better] - gains[worse], lengths[better] - lengths[worse]
        right = 0.5 if gain == 0 else float(gain > 0)
        found.setdefault(PAIRS, []).append(right)
        if longer:
            found.setdefault(LONGER_IS_BETTER if longer > 0 else SHORTER_IS_BETTER, []).append(
                right
            )
    return {name: (sum(values), len(values)) for name, values in found.items()}


def _scores(sums: Sequence[Sums | None]) -> list[dict[str, float | None]]:
    """Values whose mean is that over all tokens or pairs, and whose spread is that of the mean; as
    a stage's own.

    An example's value depends on the others, so that its own mean stands next to it.
    """
    scores: list[dict[str, float | None]] = [{} for _ in sums]
    for name in METRICS:
        known = {place: one[name] for place, one in enumerate(sums) if one and name in one}
        if known:
            values = held_out.values_of([{"accuracy": known}])["accuracy"]
            for (place, (total, count)), value in zip(known.items(), values, strict=True):
                scores[place] |= {name: value, ITS_OWN.format(name): total / count}
    return scores


def rows(
    groups: Sequence[Group], policies: Sequence[str], baseline: str | None, **facts: Any
) -> list[Row]:
    """The rows of policies by METRICS. groups: of `measured`. facts: of `compared`."""
    found = list[Row]()
    for name in METRICS:
        if has_score(groups, name):
            # The base model's scores of pairs are ties, which are no shares of hits: no scale for
            # all.
            own: dict[str, Any] = {
                "kind": "metric",
                "scale": None,
                "percent": name != LOSS,
                "lower": name == LOSS,
            }
            found += rated(groups, policies, baseline, name, **own, **facts)
    return found
