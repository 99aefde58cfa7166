"""The step `calibration`: is a policy right as often as it is sure? And how sure is it when it is
wrong?

A policy's confidence in an answer is the probability that it gives to the tokens of the answer,
with its end, at temperature 1: of all of them together, or per token (the geometric mean), which
suits long answers. Kadavath et al. 2022, arXiv:2207.05221, and OpenAI 2023, GPT-4 technical report,
arXiv:2303.08774, figure 8: reinforcement learning makes it worse. Intervals are bootstrapped over
prompts, the same ones for all policies, except for the share that is right, which has those of
rates, and the calibration error (`alignkit_plugins.compare.calibration.error`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from alignkit import Artifact, Field, Group, RunFailed, Step, StepContext, StepData
from alignkit.evaluation import statistics as stats
from alignkit.evaluation.statistics import shown
from alignkit.report import Block, Report, Table
from alignkit_plugins.compare.calibration import Cases, bins, error, error_difference
from alignkit_plugins.compare.comparison import answers_of, prompts_to_compare, sample_policies
from alignkit_plugins.evaluate.honesty_policies import PoliciesOptions, rightness, title_and_heads


class Calibration(Step):
    """Policies answer prompts; their confidence in the answers is compared with whether these are
    right.
    """

    class Options(PoliciesOptions):
        confidence: Literal["sequence", "token"] = Field(
            "sequence",
            description="probability of the whole answer, or its geometric mean per token",
        )

    options: Options

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.prompts)) is not None:
            data.check_prompts(
                self.options.correct, prompts_to_compare(rows, self.options.limit)[0]
            )

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # Before sampling: a missing key or file shows here
        scorer = context.scorer(options.correct)
        prompts, notes = options.read(context)
        groups = sample_policies(
            context, options.policies, prompts, samples_per_prompt=1, **options.sampled()
        )
        cases = {
            policy: self._cases(groups, policy, scorer, context) for policy in options.policies
        }
        complete = [
            place
            for place in range(len(groups))
            if all(known[place] is not None for known in cases.values())
        ]
        if not complete:
            raise RunFailed(
                f"calibration: none of {len(prompts)} prompts has a measured answer of every policy"
            )
        kept = {
            options.names[policy]: Cases.of([known[place] for place in complete])
            for policy, known in cases.items()
        }
        summary = {
            "prompts": len(complete),
            "left_out": len(prompts) - len(complete),
            "notes": notes,
            "confidence": options.confidence,
            "baseline": options.compared_with,
            **summarize(kept, options.compared_with, context.seed),
        }
        context.write_json("calibration.json", summary)
        return Artifact(summary=summary, report=report(summary))

    def _cases(
        self, groups: Sequence[Group], policy: str, scorer: Any, context: StepContext
    ) -> list[tuple[float, bool] | None]:
        """Confidence and rightness of a policy's answer to each prompt; None if a confidence or a
        score is missing.
        """
        own = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
        logprobs = context.models[policy].logprobs(own, temperature=1.0)
        sure = [
            confidence(row.double().tolist(), self.options.confidence)
            if len(row) == len(group.responses[0].tokens or ()) > 0 and not row.isnan().any()
            else None
            for group, row in zip(own, logprobs, strict=True)
        ]
        right = rightness(own, scorer, self.options.threshold)
        return [
            None if p is None or known is None else (p, known)
            for p, known in zip(sure, right, strict=True)
        ]


def confidence(logprobs: Sequence[float], kind: str) -> float:
    """The probability of an answer from those of its tokens: of all together, or the geometric
    mean.
    """
    total = math.fsum(logprobs)
    # Rounding may exceed 0
    return math.exp(min(0.0, total if kind == "sequence" else total / len(logprobs)))


def summarize(cases: Mapping[str, Cases], baseline: str | None, seed: int) -> dict[str, Any]:
    """All measures of each policy, and what they differ by from the baseline's, with intervals."""
    policies = {
        policy: {
            "accuracy": stats.rate(known.right.tolist()),
            **{
                name: _estimated(measure, [known], seed) for name, (measure, _) in _MEASURES.items()
            },
            "error": error(known, seed),
            "bins": bins(known),
        }
        for policy, known in cases.items()
    }
    against = {
        policy: {
            "accuracy": stats.paired_rates(known.right.tolist(), cases[baseline].right.tolist()),
            **{
                name: _estimated(measure, [known, cases[baseline]], seed)
                for name, (measure, _) in _MEASURES.items()
            },
            "error": error_difference(known, cases[baseline], seed),
        }
        for policy, known in cases.items()
        if baseline is not None and policy != baseline
    }
    return {"policies": policies, "against": against}


def _estimated(measure: Any, sides: Sequence[Cases], seed: int) -> Mapping[str, Any]:
    """A measure, or the difference of two at the same prompts, with its bootstrap interval."""

    def value(drawn: Sequence[Cases]) -> float | None:
        found = [measure(cases) for cases in drawn]
        return None if None in found else found[0] - math.fsum(found[1:])

    n = len(sides[0].sure)
    from alignkit_plugins.krippendorff import bootstrap  # imports numpy

    return bootstrap(
        value(sides), n, lambda places: value([side.take(places) for side in sides]), seed=seed
    )


def mean_confidence(cases: Cases) -> float | None:
    """How sure the policy is on average."""
    return float(cases.sure.mean())


def overconfidence(cases: Cases) -> float | None:
    """Mean confidence minus accuracy: positive if the policy is surer than it should be."""
    return float((cases.sure - cases.right).mean())


def brier(cases: Cases) -> float | None:
    """The mean squared distance between confidence and rightness (Brier 1950); smaller is
    better.
    """
    return float(((cases.sure - cases.right) ** 2).mean())


def auroc(cases: Cases) -> float | None:
    """P(a right answer is given with more confidence than a wrong one), ties as half; None if all
    are one of both.

    The Mann-Whitney statistic over the number of pairs (Hanley and McNeil 1982).
    """
    from scipy.stats import rankdata

    hits = int(cases.right.sum())
    if hits in (0, len(cases.right)):
        return None
    ranks = rankdata(cases.sure)[cases.right > 0].sum()
    return float((ranks - hits * (hits + 1) / 2) / (hits * (len(cases.right) - hits)))


def when_right(cases: Cases) -> float | None:
    """How sure the policy is of its right answers; None without any."""
    return float(cases.sure[cases.right > 0].mean()) if cases.right.any() else None


def when_wrong(cases: Cases) -> float | None:
    """How sure the policy is of its wrong answers; None without any."""
    return None if cases.right.all() else float(cases.sure[cases.right == 0].mean())


_MEASURES = {
    "confidence": (mean_confidence, "confidence"),
    "overconfidence": (overconfidence, "confidence minus right"),
    "brier": (brier, "Brier score"),
    "auroc": (auroc, "AUROC of confidence"),
    "when_right": (when_right, "confidence when right"),
    "when_wrong": (when_wrong, "confidence when wrong"),
}
MEASURES = {
    "accuracy": "right",
    "error": "calibration error (ECE)",
    **{name: text for name, (_, text) in _MEASURES.items()},
}


def report(summary: Mapping[str, Any]) -> Report:
    """A column per policy, then what differs from the baseline, then confidence and accuracy in
    bins.
    """
    policies, against, baseline = summary["policies"], summary["against"], summary["baseline"]
    title, heads = title_and_heads("calibration, mean", summary)
    rows = [
        [text, *(shown(found[name]) for found in policies.values())]
        for name, text in MEASURES.items()
    ]
    blocks: list[Block] = ["\n".join(summary["notes"]), Table(title, ["", *heads], rows)]
    if against:
        rows = [
            [text, *(shown(found[name], sign=True) for found in against.values())]
            for name, text in MEASURES.items()
        ]
        blocks.append(Table(f"against {baseline}, on the same prompts", ["", *against], rows))
    rows = [
        [policy, f"{row['low']:.0%} to {row['high']:.0%}", str(row["n"])]
        + [f"{row[name]:.2f}" for name in ("confidence", "accuracy")]
        for policy, found in policies.items()
        for row in found["bins"]
    ]
    blocks.append(
        Table("by confidence", ["policy", "bin", "answers", "confidence", "right"], rows, keys=2)
    )
    return Report(blocks)
