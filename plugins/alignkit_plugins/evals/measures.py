"""What describes the answers of policies: their length, how they differ from each other, and their
KL to the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alignkit import Group, StepContext
from alignkit.data.group import length
from alignkit.errors import OtherTokenizer
from alignkit.evaluation import statistics
from alignkit_plugins.compare.comparison import answers_of, of_policy, units_of
from alignkit_plugins.compare.rows import (
    ANSWERS,
    DISTINCT,
    KL,
    LENGTH,
    SELF_BLEU,
    TRUNCATED,
    Row,
)
from alignkit_plugins.compare.scores import Measure, Scale, Scores, prompts_in
from alignkit_plugins.text.text_metrics import distinct, self_bleu, words_of

AMOUNT = Scale(None, bounds=(0.0, math.inf))  # The scale of what cannot be below 0.


def of_answers(groups: Sequence[Group], policies: Sequence[str]) -> list[Row]:
    """How long the answers of policies are, in tokens, and which share is truncated."""
    rows = []
    units = units_of(groups)
    for policy in policies:
        lengths, truncated = list[float](), list[bool]()
        for group in groups:
            answers = answers_of(group, policy)
            lengths.append(statistics.mean(list(map(length, answers))))
            truncated += [response.truncated for response in answers]
        rows.append(Row(policy, LENGTH, ANSWERS, AMOUNT.mean(lengths, units)))
        share = {"mean": sum(truncated) / len(truncated)}
        rows.append(Row(policy, TRUNCATED, ANSWERS, share, percent=True))
    return rows


def diversity(groups: Sequence[Group], policies: Sequence[str]) -> Scores:
    """How a policy's answers to a prompt differ: the share of pairs of words that occur once, and
    how well the others predict an answer.
    """
    share = Measure(ANSWERS, Scale(None, bounds=(0.0, 1.0)), percent=False)
    found = Scores({DISTINCT: share, SELF_BLEU: share})
    for policy in policies:
        texts = [[words_of(one.text) for one in answers_of(group, policy)] for group in groups]
        prompts = prompts_in(groups)
        found.add(DISTINCT, {policy: [distinct(own, 2) for own in texts]}, prompts)
        found.add(SELF_BLEU, {policy: [self_bleu(own) for own in texts]}, prompts)
    return found


def kl_of(
    groups: Sequence[Group],
    policies: Mapping[str, str],
    baseline: str,
    temperature: float,
    context: StepContext,
) -> list[Row]:
    """The KL of each policy to the baseline, in nats per response.

    Says what it does, and why policies have no KL. A response that a model had to truncate has
    none. policies: the model of each, by its name.
    """
    rows, units = list[Row](), units_of(groups)
    for policy, model in policies.items():
        if policy == baseline:
            zero = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len({*units})}
            rows.append(Row(policy, KL, ANSWERS, zero, baseline))
            continue
        context.say(f"{context.out.name}: KL of {policy} to {baseline}")
        answered, missing = of_policy(groups, policy), 0
        try:
            values = _kl(answered, model, policies[baseline], temperature, context)
        except OtherTokenizer as error:
            context.say(f"{context.out.name}: no KL of {policy}: {error}")
            values = [[] for _ in groups]
        means, measured = list[float](), list[int]()
        for group, nats, unit in zip(answered, values, units, strict=True):
            missing += len(group.responses) - len(nats)
            if nats:
                means.append(statistics.mean(nats))
                measured.append(unit)
        kl = AMOUNT.mean(means, measured)
        rows.append(Row(policy, KL, ANSWERS, kl, baseline, missing=missing))
    return rows


def _kl(
    answered: Sequence[Group], model: str, baseline: str, temperature: float, context: StepContext
) -> list[list[float]]:
    """KL(policy || baseline) in nats of the responses at each prompt, at the sampling temperature.

    The estimator is k3 (Schulman 2020, "Approximating KL Divergence"), the sum of q/p - 1 -
    log(q/p) over the tokens of the policy's own samples: unbiased if these leave no token out, and
    never negative. Raises OtherTokenizer if the baseline has another tokenizer.
    """
    policy = iter(context.models[model].logprobs(answered, temperature=temperature))
    reference = iter(context.models[baseline].logprobs(answered, temperature=temperature))
    values = []
    for group in answered:
        nats = list[float]()
        for response in group.responses:
            ours, theirs = next(policy), next(reference)
            if len(ours) == len(theirs) == len(response.tokens or ()):
                change = theirs.double() - ours.double()
                nats.append(float((change.expm1() - change).sum()))
        values.append(nats)
    return values
