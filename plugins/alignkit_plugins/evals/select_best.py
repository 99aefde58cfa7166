"""The step `select_best`: choose the policy with the best mean reward on validation prompts, for
`from: STAGE`.

InstructGPT chose its SFT checkpoint by the reward model's score and not by validation loss, which
rose after one epoch while people's preference still grew (Ouyang et al. 2022, arXiv:2203.02155,
section 3.5 and appendix C.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from alignkit.contract.report import Report
from alignkit.contract.reward import REWARD_KEY
from alignkit.evaluation import statistics
from alignkit_plugins.compare.comparison import (
    check_unique,
    checked_prompts,
    prompts_to_compare,
    sample_policies,
)
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.scores import Measure, compare, scale_of, scores_of
from alignkit_plugins.compare.tables import table


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
            description="validation prompts; rows with the same words and columns count once"
        )
        samples_per_prompt: int = Field(1, "responses of each policy to each prompt", ge=1, le=1024)

        def check_values(self) -> None:
            check_unique("policies", self.policies)

        def policies_to_sample(self) -> list[str]:
            return self.policies

    options: Options

    def check_data(self, data: StepData) -> None:
        checked_prompts(data, self.options.prompts, self.options.reward)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        scorer = context.scorer(options.reward)  # before sampling: a missing key or file shows here
        prompts, notes = prompts_to_compare(context.load(options.prompts))
        count = options.samples_per_prompt
        groups = sample_policies(
            context, options.policies, prompts, samples_per_prompt=count, **options.sampled()
        )
        groups = complete(scorer.score(groups), options.policies)
        if not groups:
            text = f"none of {len(prompts)} prompts has a scored answer of every policy"
            raise RunFailed(f"select_best: {text}")
        best, rows = selected(groups, options.policies)
        left_out = len(prompts) - len(groups)
        summary: dict[str, Any] = {
            "policy": best,
            "prompts": len(groups),
            "left_out": left_out,
            "results": list(map(plain, rows)),
            "notes": [f"sampled with {options.described()}", *notes],
        }
        headline = (
            f"selected: {best}, by mean reward over {len(groups)} prompts, {left_out} left out"
        )
        behind = table(rows, f"minus {best}", differences=True)
        report = Report([headline, table(rows), behind, "\n".join(summary["notes"])])
        return Artifact(policy=best, summary=summary, report=report)


def complete(groups: Sequence[Group], policies: Sequence[str]) -> list[Group]:
    """The prompts at which every policy has a score, so that none is chosen for the easier ones."""
    kept = list[Group]()
    for group in groups:
        scored = [one.source for one in group.responses if one.scores[REWARD_KEY] is not None]
        if {*policies} <= {*scored}:
            kept.append(group)
    return kept


def selected(groups: Sequence[Group], policies: Sequence[str]) -> tuple[str, list[Row]]:
    """The first of the policies with the highest mean reward, and how far each other one is from
    it.
    """
    measure = Measure("reward", scale_of(groups, REWARD_KEY))
    scores = scores_of(groups, policies, {REWARD_KEY: measure})
    means = {row.policy: row.estimate["mean"] for row in compare(scores)}
    highest = max(means.values())
    best = next(policy for policy, mean in means.items() if statistics.equal(mean, highest))
    return best, compare(scores, best)
