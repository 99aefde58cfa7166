"""What `sycophancy` and `calibration` share: policies that answer prompts with a right answer, and
their measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import model_validator

from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    PolicyRef,
    RewardRef,
    Sampling,
    Step,
    StepContext,
    StepData,
)
from alignkit.report import Block, Report
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import (
    AnswerOptions,
    check_unique,
    default_baseline,
    prompts_to_compare,
    sampled_at,
    short_names,
)
from alignkit_plugins.compare.reward_columns import bare
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.tables import table
from alignkit_plugins.evaluate.learned_from import training_data_note

RIGHT = 0.5  # an answer that scores above this is right


class MeasuredStep(Step):
    """Policies answer prompts, and are compared by measures of their answers."""

    class Options(AnswerOptions):
        sampling: Sampling = sampled_at(0)
        policies: list[PolicyRef] = Field(
            min_length=1, description="policies to measure: `base`, stages or `STAGE@k`"
        )
        correct: RewardRef = Field(
            description=(
                "reward that is above one half for a right answer, such as `honesty_accuracy`"
            )
        )
        prompts: DataRef = Field(
            description="held-out prompts; rows that repeat words and columns count once"
        )
        baseline: PolicyRef | None = Field(
            None,
            description=(
                "policy to compare the others with; default: the first but `base`, or else `base`"
            ),
        )

        @model_validator(mode="after")
        def _policies(self) -> Any:
            check_unique("policies", self.policies)
            if self.baseline is not None and self.baseline not in self.policies:
                known = ", ".join(self.policies)
                raise ValueError(f"baseline '{self.baseline}' must be one of the policies: {known}")
            return self

        def policies_to_sample(self) -> list[str]:
            return self.policies

    file: ClassVar[str]  # that has all numbers
    options: Any

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.prompts)) is not None:
            prompts, _ = prompts_to_compare(rows)
            data.check_prompts(self.options.correct, prompts)
            self.check_prompts(prompts)

    def check_prompts(self, prompts: Sequence[Group]) -> None:
        """Raise DataError for prompts that lack what is measured."""

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        scorer = context.scorer(
            options.correct
        )  # before sampling: a missing key or file shows here
        prompts, repeated = prompts_to_compare(context.load(options.prompts))
        self.check_prompts(prompts)
        warning = training_data_note(context, options.policies, prompts, "prompts")
        notes = [f"sampled with {options.described()}", *repeated, *filter(None, [warning])]
        names = short_names(options.policies)
        chosen = options.baseline or default_baseline(options.policies)
        baseline = chosen and names[chosen]
        rows, facts = self.measured(prompts, baseline, scorer, context)
        left_out = len(prompts) - facts["prompts"]
        notes += facts.pop("notes", ())
        summary = {
            **facts,
            "left_out": left_out,
            "notes": notes,
            "baseline": baseline,
            "results": list(map(plain, rows)),
        }
        context.write_json(f"{self.file}.json", summary)
        title = f"mean and 95% interval over {facts['prompts']} prompts, {left_out} left out"
        blocks: list[Block] = ["\n".join(notes), table(rows, title)]
        if compared_rows := [row for row in rows if row.difference]:
            title = f"against {baseline}, at prompts that count for both"
            blocks.append(table(compared_rows, title, differences=True))
        return Artifact(summary=summary, report=Report(blocks))

    def measured(
        self, prompts: Sequence[Group], baseline: str | None, scorer: Any, context: StepContext
    ) -> tuple[list[Row], dict[str, Any]]:
        """The rows of all policies, and what else is said: `prompts` that count, and `notes`."""
        raise NotImplementedError


def rightness(groups: Sequence[Group], scorer: Any) -> list[bool | None]:
    """Whether each group's only response is right; None if it has no score."""
    scores = [group.responses[0].scores[REWARD_KEY] for group in scorer.score(bare(groups))]
    return [None if score is None else score > RIGHT for score in scores]
