"""What describes the answers of policies: their length, their KL to the baseline, and their
diversity.

Kirk et al. 2024 (arXiv:2310.06452) measure that RLHF costs diversity against SFT. Here are
self-BLEU among the answers to a prompt (Zhu et al. 2018, arXiv:1802.01886), and an estimate of the
entropy of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Group, Response, StepContext
from alignkit.data.group import length
from alignkit.errors import OtherTokenizer
from alignkit.evaluation import statistics
from alignkit_plugins.compare.compared import Scale, compared
from alignkit_plugins.compare.comparison import Prompted, answers_of, unit_of
from alignkit_plugins.compare.rows import ANSWERS, KL, LENGTH, TRUNCATED, Row
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.formats.text_metrics import self_bleu, words_of

FALLS = "self-BLEU"  # the metric of diversity that is lower for more diverse answers


def of_answers(groups: Sequence[Group], policies: Sequence[str]) -> list[Row]:
    """How long the answers of policies are, in tokens, and which share is truncated."""
    rows = []
    units = [unit_of(group) for group in groups]
    for policy in policies:
        lengths, truncated = [], []
        for group in groups:
            answers = answers_of(group, policy)
            lengths.append(statistics.mean([length(response) for response in answers]))
            truncated += [response.truncated for response in answers]
        draws = statistics.clustered(lengths, units)
        rows.append(Row(policy, LENGTH, ANSWERS, {**statistics.estimate(draws), "n": len(lengths)}))
        share = {"mean": sum(truncated) / len(truncated)}
        rows.append(Row(policy, TRUNCATED, ANSWERS, share, percent=True))
    return rows


# The KL to a reference


def kl_of(
    groups: Sequence[Group],
    policies: Mapping[str, Prompted],
    reference: str,
    temperature: float,
    context: StepContext,
) -> list[Row]:
    """The KL of each policy to a model that answers plain prompts, in nats per response.

    Says what it does, and why policies have no KL. Of a response that a model had to truncate there
    is none.
    """
    rows = []
    itself = Prompted(reference)
    name = next((name for name, prompted in policies.items() if prompted == itself), reference)
    units = [unit_of(group) for group in groups]
    for policy, prompted in policies.items():
        answered = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
        if prompted == itself:
            zero = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(groups)}
            rows.append(Row(policy, KL, ANSWERS, zero, name))
            continue
        context.say(f"{context.out.name}: KL of {policy} to {name}")
        try:
            values = _kl(answered, prompted, reference, temperature, context)
        except OtherTokenizer as error:
            context.say(f"{context.out.name}: no KL of {policy}: {error}")
            values = [[] for _ in groups]
        means = [statistics.mean(each) if each else None for each in values]
        (row,) = compared(KL, {policy: means}, kind=ANSWERS, scale=Scale(None), units=units)
        missing = sum(len(group.responses) for group in answered) - sum(map(len, values))
        rows.append(replace(row, baseline=name, missing=missing))
    return rows


def _kl(
    answered: Sequence[Group],
    prompted: Prompted,
    reference: str,
    temperature: float,
    context: StepContext,
) -> list[list[float]]:
    """KL(policy || reference) in nats of the responses at each prompt, at the sampling temperature.

    The estimator is k3 (Schulman 2020, "Approximating KL Divergence"), the sum of q/p - 1 -
    log(q/p) over the tokens of the policy's own samples: unbiased if these leave no token out, and
    never negative. The reference answers once to the plain prompts. Of the best of N, p is the
    model's, and log N - (N - 1)/N is added: more than the choice can add (Beirami et al. 2024,
    arXiv:2401.01879, theorem 1). Raises OtherTokenizer if the reference has another tokenizer.
    """
    read = [prompted.read(group) for group in answered]
    policy = iter(context.models[prompted.role].logprobs(read, temperature=temperature))
    plain = iter(context.models[reference].logprobs(answered, temperature=temperature))
    chosen = math.log(prompted.drafts) - (prompted.drafts - 1) / prompted.drafts
    found = []
    for group in answered:
        nats = []
        for response in group.responses:
            ours, theirs = next(policy), next(plain)
            if len(ours) == len(theirs) == len(response.tokens or ()):
                change = theirs.double() - ours.double()
                nats.append(float((change.expm1() - change).sum()) + chosen)
        found.append(nats)
    return found


# Diversity


def diversity(
    groups: Sequence[Group], policies: Sequence[str], baseline: str | None, **facts: Any
) -> list[Row]:
    """How different the answers of each policy are, and whether it is less than the baseline's.

    A metric that a policy does not have is left out: self-BLEU with one answer to a prompt, and
    entropy of answers whose log-probabilities are not known. facts: of `compared`.
    """
    rows = list[Row]()
    units = [unit_of(group) for group in groups]
    for name, measure in {FALLS: _self_bleu, "entropy, nats per token": _entropy}.items():
        values = dict[str, list[float | None]]()
        for policy in policies:
            own = [measure(answers_of(group, policy)) for group in groups]
            if None not in own:
                values[policy] = own
        if values:
            theirs = baseline if baseline in values else None
            how: dict[str, Any] = {"kind": "diversity", "scale": Scale(None), "units": units}
            rows += compared(
                name, values, theirs, lower=name == FALLS, percent=False, **how, **facts
            )
    return [replace(row, win_rate={}, counts="") for row in rows]


def _self_bleu(answers: Sequence[Response]) -> float | None:
    """How much the answers to a prompt resemble each other; None of one."""
    return self_bleu([words_of(all_turns(response)) for response in answers])


def _entropy(answers: Sequence[Response]) -> float | None:
    """The mean -log p of a token; None if an answer has no log-probabilities."""
    told = [response.logprobs for response in answers if response.logprobs]
    if not told or len(told) < len(answers):
        return None
    return statistics.mean([-math.fsum(logprobs) / len(logprobs) for logprobs in told])
