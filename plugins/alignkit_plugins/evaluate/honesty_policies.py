"""What the steps `sycophancy` and `calibration` share: policies that answer prompts, and who is
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import model_validator

from alignkit import DataRef, Field, Group, PolicyRef, RewardRef, Sampling, StepContext
from alignkit.evaluation.statistics import CONFIDENCE
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import (
    AnswerOptions,
    check_unique,
    prompts_to_compare,
    sampled_at,
    short_names,
)
from alignkit_plugins.evaluate.learned_from import training_data_note


class PoliciesOptions(AnswerOptions):
    """Options of a step in which policies answer prompts that have a right answer."""

    sampling: Sampling = sampled_at(0)
    policies: list[PolicyRef] = Field(
        min_length=1, description="policies to measure: `base`, stages or `STAGE@k`"
    )
    correct: RewardRef = Field(
        description="reward that says whether an answer is right, such as `honesty_accuracy`"
    )
    threshold: float = Field(0.5, description="answers that score above this are right")
    prompts: DataRef = Field(
        description="held-out prompts; rows that repeat words and columns count once"
    )
    baseline: PolicyRef | None = Field(
        None,
        description=(
            "policy to compare the others with; default: the first but `base`, or else `base`"
        ),
    )
    limit: int | None = Field(None, ge=1, description="use only the first N prompts")

    @model_validator(mode="after")
    def _policies(self) -> Any:
        check_unique("policies", self.policies)
        if self.baseline is not None and self.baseline not in self.policies:
            raise ValueError(
                f"baseline '{self.baseline}' must be one of the policies: "
                f"{', '.join(self.policies)}"
            )
        return self

    def policies_to_sample(self) -> list[str]:
        return self.policies

    @property
    def names(self) -> Mapping[str, str]:
        """Each policy's name in the tables."""
        return short_names(self.policies)

    @property
    def compared_with(self) -> str | None:
        """The baseline's name in the tables; None for a single policy."""
        if len(self.policies) < 2:
            return None
        default = next((name for name in self.policies[:-1] if name != "base"), self.policies[0])
        return self.names[self.baseline or default]

    def read(self, context: StepContext) -> tuple[list[Group], list[str]]:
        """The prompts, and notes for a reader of the results, such as of prompts that a policy has
        learned from.
        """
        prompts, repeated = prompts_to_compare(context.load(self.prompts), self.limit)
        warning = training_data_note(context, self.policies, prompts, "prompts")
        return prompts, [f"sampled with {self.described()}", *repeated, *filter(None, [warning])]


def title_and_heads(what: str, summary: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The title of the table of a summary's policies, and the heads of their columns. what: the
    step and its values.
    """
    left_out, baseline = (
        f", {summary['left_out']} left out" if summary["left_out"] else "",
        summary["baseline"],
    )
    title = f"{what} and {CONFIDENCE:.0%} interval over {summary['prompts']} prompts{left_out}"
    return title, [
        f"{name} (baseline)" if name == baseline else name for name in summary["policies"]
    ]


def rightness(
    groups: Sequence[Group],
    scorer: Any,
    threshold: float,
    meta: Sequence[Mapping[str, Any]] | None = None,
) -> list[bool | None]:
    """Whether each group's only response is right; None if it has no score. meta: columns in place
    of the groups'.
    """
    bare = [
        replace(
            group,
            responses=tuple(replace(r, scores={}) for r in group.responses),
            meta=dict(columns),
        )
        for group, columns in zip(groups, meta or [group.meta for group in groups], strict=True)
    ]
    scores = [group.responses[0].scores[REWARD_KEY] for group in scorer.score(bare)]
    return [None if score is None else score > threshold for score in scores]
