"""The numbers of a comparison by rewards, as evaluation.json has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Group, StepContext
from alignkit.data.group import length
from alignkit.errors import OtherTokenizer
from alignkit.evaluation import statistics
from alignkit_plugins.compare.compared import averages, scale_of, scores_of
from alignkit_plugins.compare.compared import compare as compare_scores
from alignkit_plugins.compare.comparison import Prompted, answers_of, short_names, unit_of
from alignkit_plugins.evaluate.judged import Judged
from alignkit_plugins.evaluate.metrics import Metric


def measure(
    groups: Sequence[Group], policy: str, names: Sequence[str], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """The results of one policy, without comparisons. names: of rewards and metrics."""
    answers = [response for group in groups for response in answers_of(group, policy)]
    rewards = {}
    for name in names:
        counted = _counted(groups, name, metrics)
        unscored = sum(
            r.scores[name] is None for group in counted for r in answers_of(group, policy)
        )
        rewards[name] = {
            **scale_of(groups, name).mean(*scores_of(averages(counted, policy, name))),
            "unscored": unscored,
        }
    lengths = [statistics.mean([length(r) for r in answers_of(group, policy)]) for group in groups]
    return {
        "rewards": rewards,
        "length": _mean(lengths, groups),
        "truncated": sum(response.truncated for response in answers) / len(answers),
    }


def _mean(values: Sequence[float], groups: Sequence[Group]) -> statistics.Estimate:
    """The mean of a value per prompt."""
    return {
        **statistics.estimate(statistics.clustered(values, [*map(unit_of, groups)])),
        "n": len(values),
    }


def compare(
    groups: Sequence[Group], policy: str, baseline: str, name: str, metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """A policy against the baseline by a reward or a metric, as in `compare_scores`."""
    lower = name in metrics and metrics[name].better == "lower"
    return compare_scores(
        _counted(groups, name, metrics), policy, baseline, name, metric=name in metrics, lower=lower
    )


def _counted(groups: Sequence[Group], name: str, metrics: Mapping[str, Metric]) -> Sequence[Group]:
    """The groups that are part of a metric; all, for a reward."""
    return [group for group in groups if metrics[name].counts(group)] if name in metrics else groups


def with_short_names(
    groups: Sequence[Group], summary: dict[str, Any], verdicts: Mapping[str, Mapping[str, Judged]]
) -> tuple[list[Group], dict[str, Any], dict[str, Any]]:
    """The groups, the summary and the verdicts with short names for the folders of other runs."""
    names: dict[str | None, str | None] = {None: None}
    names |= short_names([*summary["policies"], summary["reference"] or ""]).items()
    renamed = [
        replace(group, responses=tuple(replace(r, source=names[r.source]) for r in group.responses))
        for group in groups
    ]
    short = {
        **summary,
        **{key: names[summary[key]] for key in ("baseline", "reference")},
        **{
            key: {names[policy]: value for policy, value in summary[key].items()}
            for key in ("policies", "against", "against_base", "judged", "trained_on")
        },
    }
    return renamed, short, {str(names[policy]): found for policy, found in verdicts.items()}


def kl_of(
    groups: Sequence[Group],
    policies: Sequence[str],
    reference: str | None,
    prompted: Mapping[str, Prompted],
    temperature: float,
    context: StepContext,
) -> dict[str, dict[str, Any] | None]:
    """The KL of each policy; None without a reference. Says what it does, and why policies have no
    KL.
    """
    if reference is None:
        return dict.fromkeys(policies)
    shown, found = short_names([*policies, reference]), dict[str, dict[str, Any] | None]()
    without: dict[str, list[str]] = {}  # why there is no KL -> of which policies
    for policy in policies:
        if policy != reference:
            context.say(f"{context.out.name}: KL of {shown[policy]} to {shown[reference]}")
        try:
            found[policy] = kl(
                groups, policy, reference, context, temperature, prompted.get(policy)
            )
        except OtherTokenizer as error:
            without.setdefault(str(error), []).append(shown[policy])
            count = sum(len(answers_of(group, policy)) for group in groups)
            found[policy] = {**statistics.estimate([]), "unmeasured": count}
    for reason, unmeasured in without.items():
        context.say(f"{context.out.name}: no KL of {', '.join(unmeasured)}: {reason}")
    return found


def kl(
    groups: Sequence[Group],
    policy: str,
    reference: str,
    context: StepContext,
    temperature: float,
    prompted: Prompted | None = None,
) -> dict[str, Any]:
    """KL(policy || reference) in nats per response, at the sampling temperature.

    The estimator is k3 (Schulman 2020, "Approximating KL Divergence"), the sum of q/p - 1 -
    log(q/p) over the tokens of the policy's own samples: unbiased if these leave no token out, and
    never negative. `unmeasured` counts responses that a model had to truncate. prompted: how the
    policy answers in another way; the reference answers once to the prompts. Of the best of N, p is
    the model's, and log N - (N - 1)/N is added: more than the choice can add (Beirami et al. 2024,
    arXiv:2401.01879, theorem 1). Raises OtherTokenizer if the reference has another tokenizer.
    """
    if policy == reference:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(groups), "unmeasured": 0}
    prompted = prompted or Prompted(policy)
    answered = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
    read = [prompted.read(group) for group in answered]
    logprobs = [
        iter(context.models[role].logprobs(rows, temperature=temperature))
        for role, rows in ((prompted.role, read), (reference, answered))
    ]
    added = math.log(prompted.drafts) - (prompted.drafts - 1) / prompted.drafts
    means, measured, unmeasured = list[float](), list[Group](), 0
    for group in answered:
        ratios = []
        for response in group.responses:
            ours, theirs = (next(rows) for rows in logprobs)
            if len(ours) == len(theirs) == len(response.tokens or ()):
                change = theirs.double() - ours.double()
                ratios.append(float((change.expm1() - change).sum()))
            else:
                unmeasured += 1
        if ratios:
            means.append(statistics.mean(ratios) + added)
            measured.append(group)
    return {**_mean(means, measured), "unmeasured": unmeasured}
