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
from alignkit.evaluation import held_out, statistics
from alignkit_plugins.compare.compared import averages, compare, scale_of, scores_of
from alignkit_plugins.compare.comparison import UNIT, answers_of

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, LONGER, SHORTER = (
    "pairs right",
    "pairs right, better is longer",
    "pairs right, better is shorter",
)
TOKENS, LOSS = "next tokens right", "next-token loss"
METRICS = (PAIRS, LONGER, SHORTER, TOKENS, LOSS)

Scores = list[dict[str, float | None]]  # of each example, by metric
Sums = dict[str, tuple[float, int]]
Logprobs = Callable[[str], "Sequence[Tensor]"]


def usable(groups: Sequence[Group]) -> list[Group]:
    """The comparisons; of a source without any, the demonstrations. Raises DataError if there are
    neither.
    """
    compared = {group.origin and group.origin.source for group in groups if resolved_pairs(group)}
    found = []
    for group in groups:
        alone = (group.origin and group.origin.source) not in compared
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


def measured(groups: Sequence[Group], policies: Sequence[str], context: StepContext) -> list[Group]:
    """The examples with a response of each policy that has its scores by METRICS, None where one
    does not apply.

    An example that does not fit is dropped for all.
    """
    compared = [group for group in groups if resolved_pairs(group)]
    # Cached, because each policy is compared with the base model.
    logprobs = cache(lambda role: context.models[role].logprobs(compared))
    found = {}
    for policy in policies:
        context.say(f"{context.out.name}: {policy} reads {len(groups)} held-out examples")
        found[policy] = _scores(groups, compared, policy, logprobs, context)
    scored = []
    for place, group in enumerate(groups):
        own = {policy: scores[place] for policy, scores in found.items()}
        if all(own.values()):
            responses = [
                Response(text="", source=name, scores=_all(scores)) for name, scores in own.items()
            ]
            meta = {UNIT: opening(group, None), **group.meta}
            scored.append(replace(group, responses=tuple(responses), pairs=None, meta=meta))
    if dropped := len(groups) - len(scored):
        context.say(
            f"{context.out.name}: dropped {dropped} of {len(groups)} examples: no room in "
            "max_length"
        )
    return scored


def _all(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: scores.get(name) for name in METRICS}


def _scores(
    groups: Sequence[Group],
    compared: Sequence[Group],
    role: str,
    logprobs: Logprobs,
    context: StepContext,
) -> Scores:
    """The scores of one policy; empty for an example that does not fit. compared: those of the
    groups with pairs.
    """
    alone = [group for group in groups if not resolved_pairs(group)]
    demonstrations = iter(_demonstrations(alone, role, context))
    pairs = iter(_pairs(compared, role, context.base_of(role) or role, logprobs))
    return [next(pairs if resolved_pairs(group) else demonstrations) for group in groups]


def _demonstrations(groups: Sequence[Group], role: str, context: StepContext) -> Scores:
    sums: list[Sums] = []
    for logprobs, likeliest in context.models[role].predictions(groups) if groups else ():
        # A token that does not count has 0 in both
        tokens = int(((logprobs != 0) | (likeliest != 0)).sum())
        loss, right = (-float(logprobs.sum()), tokens), (float(likeliest.sum()), tokens)
        sums.append({LOSS: loss, TOKENS: right} if tokens else {})
    return _values(sums)


def _values(sums: Sequence[Sums]) -> Scores:
    """Values whose mean is that over all tokens or pairs, and whose spread is that of the mean; as
    a stage's own.

    sums: of each example, by metric, with the number of its tokens or pairs.
    """
    scores: Scores = [{} for _ in sums]
    for name in METRICS:
        known = {place: one[name] for place, one in enumerate(sums) if name in one}
        if known:
            values = held_out.values_of([{"accuracy": known}])["accuracy"]
            for place, value in zip(known, values, strict=True):
                scores[place][name] = value
    return scores


def _pairs(groups: Sequence[Group], role: str, base: str, logprobs: Logprobs) -> Scores:
    """logprobs: of all responses of the groups, by a role."""
    if base == role != "base":  # a whole model of its own, whose base model is not known
        return [dict.fromkeys(METRICS) for _ in groups]
    both = zip(logprobs(role), logprobs(base), strict=True)
    sums = []
    for group in groups:
        responses = [next(both) for _ in group.responses]
        gains = [float(ours.double().sum() - theirs.double().sum()) for ours, theirs in responses]
        sums.append(_of_pairs(group, gains, [len(ours) for ours, _ in responses]))
    return _values(sums)


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
            found.setdefault(LONGER if longer > 0 else SHORTER, []).append(right)
    return {name: (sum(values), len(values)) for name, values in found.items()}


def added(
    summary: Mapping[str, Any],
    groups: Sequence[Group],
    baseline: str | None,
    names: Mapping[str, str],
    learned: Mapping[str, bool],
) -> dict[str, Any]:
    """The contents of evaluation.json with the metrics of examples before all others.

    groups: of `measured`. names: how `summary` names each policy. learned: whether a policy was
    trained on one of the prompts.
    """
    scores = [response.scores for group in groups for response in group.responses]
    metrics = [name for name in METRICS if any(one[name] is not None for one in scores)]
    policies, against, above = (
        dict(summary["policies"]),
        dict(summary["against"]),
        dict(summary["against_base"]),
    )
    trained = dict(summary["trained_on"])
    for policy, short in names.items():
        means = {name: _mean(groups, policy, name) for name in metrics}
        policies[short] = {**policies[short], "rewards": {**means, **policies[short]["rewards"]}}
        trained[short] = {**dict.fromkeys(metrics, learned[policy]), **trained[short]}
        if baseline is not None and policy not in (baseline, "base"):
            against[short] = {
                **_against(groups, policy, baseline, metrics),
                **against.get(short, {}),
            }
            if baseline != "base" and "base" in names:
                over = _against(groups, policy, "base", metrics)
                differences = {name: one["difference"] for name, one in over.items()}
                above[short] = {**differences, **above.get(short, {})}
    described = {
        name: {
            "reward": "examples",
            "where": {},
            "better": _better(name),
            "prompts": policies[next(iter(names.values()))]["rewards"][name]["n"],
            "percent": name != LOSS,
        }
        for name in metrics
    }
    return {
        **summary,
        "examples": len(groups),
        "headline": next(iter(metrics), summary["headline"]),
        "rewards": [*metrics, *summary["rewards"]],
        "metrics": {**described, **summary["metrics"]},
        "policies": policies,
        "against": against,
        "against_base": above,
        "trained_on": trained,
    }


def _better(name: str) -> str:
    return "lower" if name == LOSS else "higher"


def _mean(groups: Sequence[Group], policy: str, name: str) -> dict[str, Any]:
    # By its own scores: those of the base model are ties, which are no shares of hits.
    own = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
    found = scale_of(own, name).mean(*scores_of(averages(own, policy, name)))
    return {**(found if name == LOSS else statistics.of_share(found)), "unscored": 0}


def _against(
    groups: Sequence[Group], policy: str, baseline: str, metrics: Sequence[str]
) -> dict[str, Any]:
    return {
        name: compare(groups, policy, baseline, name, metric=True, lower=_better(name) == "lower")
        for name in metrics
    }
