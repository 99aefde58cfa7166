"""The KL of a policy to the reference, in nats per response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Group, StepContext
from alignkit.errors import OtherTokenizer
from alignkit.evaluation import statistics
from alignkit.evaluation.comparison import Prompted, answers_of, short_names


def kl_of(
    groups: Sequence[Group],
    policies: Sequence[str],
    reference: str | None,
    prompted: Mapping[str, Prompted],
    temperature: float,
    context: StepContext,
) -> dict[str, dict[str, Any] | None]:
    """The KL of each policy; None without a reference. Says what it does, and why policies have no KL."""
    if reference is None:
        return dict.fromkeys(policies)
    shown, found = short_names([*policies, reference]), dict[str, dict[str, Any] | None]()
    without: dict[str, list[str]] = {}  # why there is no KL -> of which policies
    for policy in policies:
        if policy != reference:
            context.say(f"{context.out.name}: KL of {shown[policy]} to {shown[reference]}")
        try:
            found[policy] = kl(groups, policy, reference, context, temperature, prompted.get(policy))
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

    The estimator is k1 (Schulman 2020, "Approximating KL Divergence"), the mean of log p - log q over the policy's own
    samples: unbiased, and possibly negative. `unmeasured` counts responses that a model had to truncate. prompted: what
    the policy reads, if not the prompts; the reference reads the prompts. Raises OtherTokenizer if the reference has
    another tokenizer.
    """
    if policy == reference:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(groups), "unmeasured": 0}
    # Without tools, of which policies read nothing when they answer.
    answered = [replace(group, responses=tuple(answers_of(group, policy)), tools=()) for group in groups]
    read = answered if prompted is None else [replace(group, prompt=tuple(prompted.read(group))) for group in answered]
    logprobs = [
        iter(context.models.logprobs(role, rows, temperature=temperature))
        for role, rows in ((policy if prompted is None else prompted.role, read), (reference, answered))
    ]
    means, unmeasured = [], 0
    for group in answered:
        ratios = []
        for response in group.responses:
            ours, theirs = (next(rows) for rows in logprobs)
            if len(ours) == len(theirs) == len(response.tokens or ()):
                ratios.append(float((ours.double() - theirs.double()).sum()))
            else:
                unmeasured += 1
        means += [statistics.mean(ratios)] if ratios else []
    return {**statistics.estimate(means), "unmeasured": unmeasured}
