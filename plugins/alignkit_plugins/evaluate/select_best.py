"""The step `select_best`: choose the policy with the best mean reward on validation prompts, for
`from: STAGE`.

InstructGPT chose its SFT checkpoint by the reward model's score and not by validation loss, which
rose after one epoch while people's preference still grew (Ouyang et al. 2022, arXiv:2203.02155,
section 3.5 and appendix C.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    PolicyRef,
    RewardRef,
    RunFailed,
    Step,
    StepContext,
    StepData,
)
from alignkit.evaluation import statistics
from alignkit.evaluation.statistics import shown
from alignkit.report import Report, Table
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.compared import Scale, averages, scale_of
from alignkit_plugins.compare.comparison import check_unique, prompts_to_compare, sample_policies


class SelectBest(Step):
    """All policies answer the same prompts with the same random streams. The earliest of equal
    policies wins.
    """

    class Options(alignkit.SamplingOptions):
        policies: list[PolicyRef] = Field(
            min_length=2, description="policies to choose from, such as `sft@1`, `sft@2`"
        )
        reward: RewardRef = Field(description="reward that scores the responses")
        prompts: DataRef = Field(
            description="validation prompts; rows that repeat words and columns count once"
        )
        samples_per_prompt: int = Field(
            1, ge=1, le=1024, description="responses of each policy to each prompt"
        )
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")

        @model_validator(mode="after")
        def _distinct(self) -> Any:
            check_unique("policies", self.policies)
            return self

        def policies_to_sample(self) -> list[str]:
            return self.policies

    options: Options

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.prompts)) is not None:
            prompts, _ = prompts_to_compare(rows, self.options.limit)
            data.check_prompts(self.options.reward, prompts)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        scorer = context.scorer(options.reward)  # before sampling: a missing key or file shows here
        prompts, repeated = prompts_to_compare(context.load(options.prompts), options.limit)
        groups = sample_policies(
            context,
            options.policies,
            prompts,
            samples_per_prompt=options.samples_per_prompt,
            **options.sampled(),
        )
        scored = scorer.score(groups)
        rewards = self._rewards(scored)
        if not rewards[options.policies[0]]:
            raise RunFailed(
                f"select_best: none of {len(prompts)} prompts has a scored answer of every policy"
            )
        notes = [f"sampled with {options.described()}", *repeated]
        summary = {**summarize(rewards, len(prompts), scale_of(scored, REWARD_KEY)), "notes": notes}
        return Artifact(policy=summary["policy"], summary=summary, report=report(summary))

    def _rewards(self, groups: Sequence[Group]) -> dict[str, list[float]]:
        """Each policy's mean reward at every prompt at which all policies have one."""
        policies = self.options.policies
        columns = [averages(groups, policy, REWARD_KEY) for policy in policies]
        complete = [row for row in zip(*columns, strict=True) if None not in row]
        return {policy: [row[n] for row in complete] for n, policy in enumerate(policies)}


def summarize(rewards: Mapping[str, Sequence[float]], prompts: int, scale: Scale) -> dict[str, Any]:
    """The best policy, all means, and its lead over each other policy."""
    means = {policy: statistics.mean(values) for policy, values in rewards.items()}
    best = next(
        policy for policy, mean in means.items() if statistics.equal(mean, max(means.values()))
    )
    return {
        "policy": best,
        "prompts": len(rewards[best]),
        "left_out": prompts - len(rewards[best]),
        "confidence": statistics.CONFIDENCE,
        "means": {policy: scale.mean(values) for policy, values in rewards.items()},
        "lead": {
            policy: scale.difference(rewards[best], values)
            for policy, values in rewards.items()
            if policy != best
        },
    }


def report(summary: Mapping[str, Any]) -> Report:
    """A row per policy; a star marks the best."""
    best, lead = summary["policy"], summary["lead"]
    left_out = (
        f", {summary['left_out']} left out for lack of room or of a score"
        if summary["left_out"]
        else ""
    )
    rows = [
        [
            "* " * (policy == best) + policy,
            shown(mean),
            shown(lead[policy]) if policy in lead else "",
        ]
        for policy, mean in summary["means"].items()
    ]
    return Report(
        [
            f"selected: {best}, by mean reward over {summary['prompts']} prompts{left_out}",
            Table("", ["policy", "mean reward", "behind by"], rows),
            "\n".join(summary["notes"]),
        ]
    )
