"""The step `select_best`: the policy with the best mean reward on validation prompts, to go on from with `from: STAGE`.

InstructGPT chose its SFT checkpoint by the reward model's score, not by validation loss, which rose after one epoch
while people's preference still grew (Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    PolicyRef,
    Register,
    RewardRef,
    RunFailed,
    Step,
    hookimpl,
    statistics,
)

if TYPE_CHECKING:
    from alignkit import StepContext


class SelectBest(Step):
    """All policies answer the same prompts with the same random streams; of equal means the earlier policy wins."""

    class Options(alignkit.Options):
        policies: list[PolicyRef] = Field(min_length=2, description="to choose from, such as `sft@1` and `sft@2`")
        reward: RewardRef = Field(description="what scores their answers")
        prompts: DataRef = Field(description="validation prompts; of equal ones the first counts")
        samples_per_prompt: int = Field(1, ge=1, le=1024, description="answers of each policy to each prompt")
        max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
        temperature: float = Field(1.0, ge=0, description="of sampling; 0: the likeliest answer")
        limit: int | None = Field(None, ge=1, description="use the first so many prompts")

        @model_validator(mode="after")
        def _distinct(self) -> Any:
            twice = sorted({name for name in self.policies if self.policies.count(name) > 1})
            if twice:
                raise ValueError(f"policies: {', '.join(twice)} more than once")
            return self

    options: Options

    def run(self, context: StepContext) -> Artifact:
        scorer = context.scorer(self.options.reward)  # before anything is sampled: a missing key or file shows now
        groups, found = self._sample(context)
        rows = [row for group in scorer.score(groups) if (row := self._means(group)) is not None]
        if not rows:
            raise RunFailed(f"select_best: none of {found} prompts has an answer with a score from every policy")
        policies = self.options.policies
        columns = {policy: [row[number] for row in rows] for number, policy in enumerate(policies)}
        means = {policy: statistics.estimate(values) for policy, values in columns.items()}
        chosen = max(policies, key=lambda policy: statistics.mean(columns[policy]))  # max: the first of equal ones
        summary = {
            "policy": chosen,
            "prompts": len(rows),
            "left_out": found - len(rows),
            "confidence": statistics.CONFIDENCE,
            "means": means,
            "lead": {
                policy: statistics.paired_difference(columns[chosen], values)
                for policy, values in columns.items()
                if policy != chosen
            },
        }
        return Artifact(policy=chosen, summary=summary, text=report(summary))

    def _sample(self, context: StepContext) -> tuple[list[Group], int]:
        """One group a prompt with the answers of all policies, in order; prompts that leave no room are left out.
        Also how many prompts there were.
        """
        from alignkit.data.group import prompts_of

        options = self.options
        prompts = prompts_of(context.load(options.prompts))[: options.limit]
        answers = []
        for number, policy in enumerate(options.policies, 1):
            context.say(f"select_best: {policy} answers {len(prompts)} prompts ({number} of {len(options.policies)})")
            sampled = context.models.sample(
                policy,
                [group.prompt for group in prompts],
                seed=context.seed,
                samples_per_prompt=options.samples_per_prompt,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
            )
            answers.append([tuple(replace(r, source=policy) for r in group.responses) for group in sampled])
        # The prompt's own group, not the sampled one: its columns (`safety`) decide how some rewards combine.
        groups = [
            replace(group, responses=tuple(itertools.chain(*said)), pairs=None)
            for group, *said in zip(prompts, *answers, strict=True)
            if all(said)
        ]
        return groups, len(prompts)

    def _means(self, group: Group) -> list[float] | None:
        """Each policy's mean score at one prompt; None when one has none: the means must be over the same prompts."""
        from alignkit.reward import REWARD_KEY

        row = []
        for policy in self.options.policies:
            scores = [s for r in group.responses if r.source == policy and (s := r.scores[REWARD_KEY]) is not None]
            if not scores:
                return None
            row.append(statistics.mean(scores))
        return row


def report(summary: Mapping[str, Any]) -> str:
    """A line for each policy, the chosen one marked."""
    chosen, prompts = summary["policy"], summary["prompts"]
    left_out = f", {summary['left_out']} left out for lack of room or of a score" if summary["left_out"] else ""
    width = max(len(policy) for policy in summary["means"])
    lines = [f"chosen: {chosen}, by mean reward over {prompts} prompts{left_out}"]
    for policy, found in summary["means"].items():
        behind = f"   behind by {shown(summary['lead'][policy])}" if policy != chosen else ""
        lines.append(f"{'*' if policy == chosen else ' '} {policy:{width}}  {shown(found)}{behind}")
    return "\n".join(lines)


def shown(found: Mapping[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['mean']:.3g}{interval}"


@hookimpl
def register_steps(register: Register) -> None:
    register("select_best", SelectBest, summary="pick the policy with the best mean reward on validation prompts")
