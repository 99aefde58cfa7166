"""The step `calibration`: is a policy right as often as it is sure? And how sure is it when it is
wrong?

A policy's confidence in an answer is the probability that it gives to the tokens of the answer,
with its end, at temperature 1: of all of them together, or per token (the geometric mean), which
suits long answers. Kadavath et al. 2022, arXiv:2207.05221, and OpenAI 2023, GPT-4 technical report,
arXiv:2303.08774, figure 8: reinforcement learning makes it worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from alignkit import Field, Group, RunFailed, StepContext
from alignkit_plugins.compare.calibration import bins, error, error_difference
from alignkit_plugins.compare.compared import compared
from alignkit_plugins.compare.comparison import answers_of, sample_policies, short_names
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.evaluate.measured import MeasuredStep, rightness


class Calibration(MeasuredStep):
    """Policies answer prompts; their confidence in the answers is compared with whether these are
    right.
    """

    class Options(MeasuredStep.Options):
        confidence: Literal["sequence", "token"] = Field(
            "sequence",
            description="probability of the whole answer, or its geometric mean per token",
        )

    file = "calibration"

    def measured(
        self, prompts: Sequence[Group], baseline: str | None, scorer: Any, context: StepContext
    ) -> tuple[list[Row], dict[str, Any]]:
        options = self.options
        groups = sample_policies(
            context, options.policies, prompts, samples_per_prompt=1, **options.sampled()
        )
        sure: dict[str, list[Any]] = {}
        right: dict[str, list[Any]] = {}
        for policy, name in short_names(options.policies).items():
            own = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
            logprobs = context.models[policy].logprobs(own, temperature=1.0)
            sure[name] = list(map(self._confidence, own, logprobs))
            right[name] = rightness(own, scorer)
        every = zip(*sure.values(), *right.values(), strict=True)
        places = [place for place, known in enumerate(every) if None not in known]
        if not places:
            text = f"none of {len(prompts)} prompts has a measured answer of every policy"
            raise RunFailed(f"calibration: {text}")
        measures: dict[str, dict[str, list[float | None]]] = {metric: {} for metric in MEASURES}
        in_bins, errors = dict[str, Any](), dict[str, Any]()
        for name in sure:
            ps = [sure[name][place] for place in places]
            hits = [float(right[name][place]) for place in places]
            in_bins[name], errors[name] = bins(ps, hits), error(ps, hits, context.seed)
            for metric, measure in MEASURES.items():
                measures[metric][name] = list(map(measure, ps, hits))
        rows = []
        for metric, values in measures.items():
            rows += compared(metric, values, baseline)
        for name, found in errors.items():
            row = Row(name, "calibration error (ECE)", "metric", found, lower=True)
            if baseline is not None and name != baseline:
                apart = error_difference(found, errors[baseline])
                row = replace(row, baseline=baseline, difference=apart)
            rows.append(row)
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
    # Rounding may exceed 0.
    return math.exp(min(0.0, total if kind == "sequence" else total / len(logprobs)))


MEASURES: dict[str, Callable[[float, float], float | None]] = {
    "right": lambda sure, right: right,
    "confidence": lambda sure, right: sure,
    "confidence minus right": lambda sure, right: sure - right,
    "Brier score": lambda sure, right: (sure - right) ** 2,
    "confidence when right": lambda sure, right: sure if right else None,
    "confidence when wrong": lambda sure, right: None if right else sure,
}
