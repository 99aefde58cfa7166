"""How different the answers of a policy are from each other, and whether it is less than the
baseline's.

Kirk et al. 2024 (arXiv:2310.06452) measure that RLHF costs diversity against SFT. Here are
distinct-n over all answers (Li et al. 2016), self-BLEU among the answers to a prompt (Zhu et al.
2018), an estimate of the entropy of tokens, and the spread of lengths. A prompt is the unit: what a
metric of all answers owes to each prompt is its jackknife pseudo-value (Tukey 1958; Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11), and intervals are those of the
mean of such values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit import Group, Response
from alignkit.data.group import length
from alignkit.evaluation import statistics
from alignkit_plugins.compare.comparison import answers_of, unit_of
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.formats.text_metrics import ngrams, self_bleu, words_of

Texts = Sequence[Sequence[Sequence[str]]]  # prompts, answers, words


@dataclass(frozen=True)
class _Measured:
    """A metric of all answers. values: what it owes to each prompt; their mean estimates it with
    less bias.
    """

    whole: float
    values: Sequence[float]

    def estimate(self, units: Sequence[Any]) -> dict[str, Any]:
        found = statistics.estimate(statistics.clustered(self.values, units))
        return _around(self.whole, {**found, "n": len(self.values)})

    def difference(self, other: _Measured, units: Sequence[Any]) -> dict[str, Any]:
        draws = statistics.clustered(statistics.differences(self.values, other.values), units)
        found = statistics.paired_difference(draws, [0.0] * len(draws))
        return _around(self.whole - other.whole, {**found, "n": len(self.values)})


def _around(whole: float, spread: Mapping[str, Any]) -> dict[str, Any]:
    """The interval of pseudo-values around the metric itself."""
    low, high, middle = spread["low"], spread["high"], spread["mean"]
    if low is None or high is None or middle is None:
        return {**spread, "mean": whole, "low": None, "high": None}
    return {**spread, "mean": whole, "low": whole + low - middle, "high": whole + high - middle}


def diversity(
    groups: Sequence[Group], policies: Sequence[str], baseline: str | None
) -> dict[str, dict[str, Any]]:
    """For each policy and measure, an estimate, with that of its paired difference from the
    baseline as `difference`.

    A metric that a policy does not have is left out: self-BLEU with one answer to a prompt, and
    entropy of answers whose log-probabilities are not known.
    """
    answers = {policy: [answers_of(group, policy) for group in groups] for policy in policies}
    units = [unit_of(group) for group in groups]
    words = {
        name: [[words_of(all_turns(r)) for r in each] for each in own]
        for name, own in answers.items()
    }
    cut = _of_equal_length(words)
    found = {policy: _measured(answers[policy], words[policy], cut[policy]) for policy in policies}
    theirs = found.get(str(baseline), {})
    return {
        policy: {
            name: {
                **one.estimate(units),
                "difference": one.difference(theirs[name], units)
                if name in theirs and policy != baseline
                else None,
            }
            for name, one in metrics.items()
        }
        for policy, metrics in found.items()
    }


def _of_equal_length(words: Mapping[str, Texts]) -> Mapping[str, Texts]:
    """Of each policy's answer k to a prompt, as many words as the shortest answer k of a policy
    has.

    distinct-n falls as there are more words, so that else a policy would lose diversity by longer
    answers alone.
    """
    prompts = zip(*words.values(), strict=True)
    least = [[min(map(len, same)) for same in zip(*each, strict=True)] for each in prompts]
    return {
        policy: [
            [text[:most] for text, most in zip(answers, limits, strict=True)]
            for answers, limits in zip(own, least, strict=True)
        ]
        for policy, own in words.items()
    }


def _measured(
    answers: Sequence[Sequence[Response]], words: Texts, cut: Texts
) -> dict[str, _Measured]:
    """The metrics of a policy. words: of its answers; cut: as many as those of the other policies
    have.
    """
    found = {
        "distinct-1": _distinct(cut, 1),
        "distinct-2": _distinct(cut, 2),
        "self-BLEU": _mean([self_bleu(each) for each in words]),
        "entropy, nats per token": _mean([_entropy(each) for each in answers]),
        "length spread, tokens": _spread([[float(length(r)) for r in each] for each in answers]),
    }
    return {name: one for name, one in found.items() if one is not None}


def _entropy(answers: Sequence[Response]) -> float | None:
    """The mean -log p of a token in the answers to a prompt; None if one has no
    log-probabilities.
    """
    told = [response.logprobs for response in answers if response.logprobs]
    return (
        statistics.mean([-math.fsum(p) / len(p) for p in told])
        if len(told) == len(answers)
        else None
    )


def _mean(values: Sequence[float | None]) -> _Measured | None:
    """The mean over prompts, whose pseudo-values are the values themselves; None if one is
    missing.
    """
    known = [value for value in values if value is not None]
    return _Measured(statistics.mean(known), known) if known and len(known) == len(values) else None


def _jackknifed(
    whole: float | None, without: Callable[[int], float | None], prompts: int
) -> _Measured | None:
    """A metric with its pseudo-values; None if it does not exist. without: the same without a
    prompt.
    """
    if whole is None:
        return None
    rest = [whole if (value := without(place)) is None else value for place in range(prompts)]
    return _Measured(whole, [prompts * whole - (prompts - 1) * value for value in rest])


def _distinct(texts: Texts, size: int) -> _Measured | None:
    """Different n-grams / all n-grams (Li et al. 2016, arXiv:1510.03055)."""
    own = [Counter(gram for words in answers for gram in ngrams(words, size)) for answers in texts]
    every: Counter[str] = Counter()
    for counts in own:
        every.update(counts)
    different, total = len(every), every.total()

    def without(place: int) -> float | None:
        only = sum(count == every[gram] for gram, count in own[place].items())
        left = total - own[place].total()
        return (different - only) / left if left else None

    return _jackknifed(different / total if total else None, without, len(own))


def _spread(lengths: Sequence[Sequence[float]]) -> _Measured | None:
    """The standard deviation of all lengths."""
    import numpy as np

    own = np.array([[len(each), sum(each), sum(x * x for x in each)] for each in lengths])

    def spread(sums: Any) -> float | None:
        n, first, second = sums
        return math.sqrt(max(0.0, (second - first * first / n) / (n - 1))) if n > 1 else None

    return _jackknifed(spread(own.sum(0)), lambda place: spread(own.sum(0) - own[place]), len(own))
