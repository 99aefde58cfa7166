"""The step `calibration`: is a policy right as often as it is sure, and how sure is it when it is
wrong?

A policy's confidence in an answer is the probability that it gives to the tokens of the answer,
with its end, at temperature 1: of all of them together, or per token (the geometric mean), which
suits long answers. Kadavath et al. 2022, arXiv:2207.05221, and OpenAI 2023, GPT-4 technical report,
arXiv:2303.08774, figure 8: reinforcement learning makes it worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from alignkit import Field, Group, RunFailed, StepContext
from alignkit.contract.reward import REWARD_KEY
from alignkit.evaluation.statistics import without_interval
from alignkit_plugins.compare.comparison import (
    bare,
    of_policy,
    sample_policies,
)
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.compare.scores import Measure, Prompt, Scores, compare, prompts_in
from alignkit_plugins.evals.measured import MeasuredStep, is_right

BRIER = "Brier score"
BINS = 10  # equal parts of the confidence from 0 to 1
Values = Mapping[str, Sequence[float]]  # by policy or rater, one for each answer


class Calibration(MeasuredStep):
    """Policies answer prompts; their confidence in the answers is compared with whether these are
    right.
    """

    class Options(MeasuredStep.Options):
        confidence: Literal["sequence", "token"] = Field(
            "sequence", "probability of the whole answer, or its geometric mean per token"
        )

    file = "calibration"

    def measured(
        self, prompts: Sequence[Group], baseline: str | None, scorer: Any, context: StepContext
    ) -> tuple[list[Row], dict[str, Any]]:
        options = self.options
        groups = sample_policies(context, options.policies, prompts, **options.sampled())
        sure, right = dict[str, list[Any]](), dict[str, list[Any]]()
        for name, policy in options.named.items():
            own = of_policy(groups, policy)
            logprobs = context.models[policy].logprobs(own, temperature=1.0)
            sure[name] = list(map(self._confidence, own, logprobs))
            right[name] = []
            for group in scorer.score(bare(own)):
                right[name].append(is_right(group.responses[0].scores[REWARD_KEY]))
        every = zip(*sure.values(), *right.values(), strict=True)
        places = [place for place, values in enumerate(every) if None not in values]
        if not places:
            text = f"none of {len(prompts)} prompts has a measured answer of every policy"
            raise RunFailed(f"calibration: {text}")
        for values in (sure, right):
            for name, every_one in values.items():
                values[name] = [float(every_one[place]) for place in places]
        measured = prompts_in([groups[place] for place in places])
        rows, in_bins = calibrated(sure, right, MEASURES, measured, baseline)
        return rows, {"prompts": len(places), "bins": in_bins}

    def _confidence(self, group: Group, logprobs: Any) -> float | None:
        tokens = group.responses[0].tokens or ()
        if not tokens or len(logprobs) != len(tokens) or logprobs.isnan().any():
            return None
        return confidence(logprobs.double().tolist(), self.options.confidence)


def confidence(logprobs: Sequence[float], kind: str) -> float:
    """The probability of an answer from those of its tokens: of all together, or the geometric
    mean.
    """
    total = math.fsum(logprobs)
    if kind == "token":
        total /= len(logprobs)
    return math.exp(min(0.0, total))  # rounding may exceed 0


# Arguments: how sure and how right an answer is. None: the measure leaves it out.
MEASURES: dict[str, Callable[[float, float], float | None]] = {
    "right": lambda sure, right: right,
    "confidence": lambda sure, right: sure,
    "confidence minus right": lambda sure, right: sure - right,
    BRIER: lambda sure, right: (sure - right) ** 2,
    "confidence when right": lambda sure, right: sure if right else None,
    "confidence when wrong": lambda sure, right: None if right else sure,
}
OF_RATERS = ("confidence minus right", BRIER)  # the measures of rewards


def calibrated(
    sure: Values,
    right: Values,
    metrics: Iterable[str],
    prompts: Sequence[Prompt],
    baseline: str | None = None,
) -> tuple[list[Row], dict[str, list[dict[str, Any]]]]:
    """The rows of MEASURES, with the expected calibration error, and the bins.

    The error is the mean distance between accuracy and confidence over bins of equal width,
    weighted by their answers (Guo et al. 2017, arXiv:1706.04599, equation 3). It has no interval,
    and is too large, because noise in a bin cannot cancel (Roelofs et al. 2022, arXiv:2012.08668).

    Args:
        sure: How sure each is of its answers, from 0 to 1.
        right: Whether they are right, 0 or 1, or with which probability.
        metrics: Names in MEASURES.
        prompts: One for each answer.
        baseline: With whom the others are compared.
    """
    scores, in_bins = Scores({BRIER: Measure(lower=True)}), dict[str, list[dict[str, Any]]]()
    for metric in metrics:
        values = {}
        for name in sure:
            values[name] = list(map(MEASURES[metric], sure[name], right[name]))
        scores.add(metric, values, prompts)
    rows = compare(scores, baseline)
    for name in sure:
        in_bins[name] = bins(sure[name], right[name])
        off = 0.0
        for one in in_bins[name]:
            off += one["n"] / len(sure[name]) * abs(one["accuracy"] - one["confidence"])
        estimate = without_interval(off, len(sure[name]))
        rows.append(Row(name, "measured calibration error (ECE)", "metric", estimate, lower=True))
    return rows, in_bins


def bins(sure: Sequence[float], right: Sequence[float]) -> list[dict[str, Any]]:
    """Confidence and accuracy in bins of equal width; a bin without answers is left out."""
    inside = dict[int, list[tuple[float, float]]]()
    for pair in zip(sure, right, strict=True):
        number = min(int(pair[0] * BINS), BINS - 1)
        inside.setdefault(number, []).append(pair)
    rows = []
    for number, pairs in sorted(inside.items()):
        confidence, accuracy = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
        row = {"low": number / BINS, "high": (number + 1) / BINS, "n": len(pairs)}
        rows.append({**row, "confidence": confidence, "accuracy": accuracy})
    return rows
