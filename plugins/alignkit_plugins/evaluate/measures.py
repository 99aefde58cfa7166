"""What describes the answers of policies: their length, KL and diversity; and policies ranked by each rater.

Kirk et al. 2024 (arXiv:2310.06452) measure that RLHF costs diversity against SFT. Here are distinct-n over all answers
(Li et al. 2016, arXiv:1510.03055), self-BLEU among the answers to a prompt (Zhu et al. 2018), and an estimate of the
entropy of tokens. A prompt is the unit: what a metric of all answers owes to each prompt is its jackknife pseudo-value
(Tukey 1958; Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Group, StepContext
from alignkit.data.group import length
from alignkit.errors import OtherTokenizer
from alignkit.evaluation import statistics
from alignkit_plugins.compare.compared import Scale, compared
from alignkit_plugins.compare.comparison import Prompted, answers_of, unit_of
from alignkit_plugins.compare.rows import ANSWERS, KL, LENGTH, TRUNCATED, Row
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.formats.text_metrics import ngrams, self_bleu, words_of

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

    Says what it does, and why policies have no KL. Of a response that a model had to truncate there is none.
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

    The estimator is k3 (Schulman 2020, "Approximating KL Divergence"), the sum of q/p - 1 - log(q/p) over the tokens of
    the policy's own samples: unbiased if these leave no token out, and never negative. The reference answers once to
    the plain prompts. Of the best of N, p is the model's, and log N - (N - 1)/N is added: more than the choice can add
    (Beirami et al. 2024, arXiv:2401.01879, theorem 1). Raises OtherTokenizer if the reference has another tokenizer.
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

    A metric that a policy does not have is left out: self-BLEU with one answer to a prompt, and entropy of answers
    whose log-probabilities are not known. facts: of `compared`.
    """
    texts = {policy: [_words(group, policy) for group in groups] for policy in policies}
    cut = _of_equal_length(texts)
    found = dict[str, dict[str, tuple[float, list[float]]]]()
    for policy in policies:
        bleu = [self_bleu(answers) for answers in texts[policy]]
        entropies = [_entropy(group, policy) for group in groups]
        measured = {
            "distinct-1": _distinct(cut[policy], 1),
            "distinct-2": _distinct(cut[policy], 2),
            FALLS: _mean(bleu),
            "entropy, nats per token": _mean(entropies),
        }
        for name, one in measured.items():
            if one is not None:
                found.setdefault(name, {})[policy] = one
    rows = []
    units = [unit_of(group) for group in groups]
    for name, by_policy in found.items():
        values = {policy: pseudo for policy, (_, pseudo) in by_policy.items()}
        theirs = baseline if baseline in values else None
        own = {
            "kind": "diversity",
            "scale": Scale(None),
            "units": units,
            "lower": name == FALLS,
            **facts,
        }
        for row in compared(name, values, theirs, **own):
            whole = by_policy[row.policy][0]
            row = replace(row, estimate=_around(whole, row.estimate), win_rate={}, counts="")
            if row.difference and theirs is not None:
                row = replace(row, difference=_around(whole - by_policy[theirs][0], row.difference))
            rows.append(row)
    return rows


def _around(whole: float, spread: Mapping[str, Any]) -> dict[str, Any]:
    """The interval of pseudo-values around the metric itself."""
    ends = {
        end: None if spread[end] is None else whole + spread[end] - spread["mean"]
        for end in ("low", "high")
    }
    return {**spread, "mean": whole, **ends}


def _words(group: Group, policy: str) -> list[list[str]]:
    return [words_of(all_turns(response)) for response in answers_of(group, policy)]


def _of_equal_length(
    texts: Mapping[str, Sequence[Sequence[Sequence[str]]]],
) -> dict[str, list[list[Sequence[str]]]]:
    """Of each policy's answer k to a prompt, as many words as the shortest answer k of a policy has.

    distinct-n falls as there are more words, so that else a policy would lose diversity by longer answers alone.
    """
    found: dict[str, list[list[Sequence[str]]]] = {policy: [] for policy in texts}
    for answers in zip(*texts.values(), strict=True):
        least = [min(map(len, same)) for same in zip(*answers, strict=True)]
        for cut, own in zip(found.values(), answers, strict=True):
            cut.append([words[:most] for words, most in zip(own, least, strict=True)])
    return found


def _entropy(group: Group, policy: str) -> float | None:
    """The mean -log p of a token in the answers to a prompt; None if one has no log-probabilities."""
    answers = answers_of(group, policy)
    told = [response.logprobs for response in answers if response.logprobs]
    return (
        statistics.mean([-math.fsum(p) / len(p) for p in told])
        if len(told) == len(answers)
        else None
    )


def _mean(values: Sequence[float | None]) -> tuple[float, list[float]] | None:
    """The mean over prompts, whose pseudo-values are the values themselves; None if one is missing."""
    known = [value for value in values if value is not None]
    return (statistics.mean(known), known) if known and len(known) == len(values) else None


def _distinct(
    texts: Sequence[Sequence[Sequence[str]]], size: int
) -> tuple[float, list[float]] | None:
    """Different n-grams / all n-grams, and its pseudo-value at each prompt; None without n-grams."""
    own = []
    for answers in texts:
        grams = [ngrams(words, size) for words in answers]
        own.append(Counter(itertools.chain(*grams)))
    every = Counter[str]()
    for counts in own:
        every.update(counts)
    if not every:
        return None
    whole, pseudo = len(every) / every.total(), []
    for counts in own:
        only = sum(count == every[gram] for gram, count in counts.items())
        rest = every.total() - counts.total()
        without = (len(every) - only) / rest if rest else whole
        pseudo.append(len(own) * whole - (len(own) - 1) * without)
    return whole, pseudo
