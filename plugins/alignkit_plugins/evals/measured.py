"""What `sycophancy` and `calibration` share: policies that answer prompts with a right answer, and
their measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from alignkit import (
    Artifact,
    Field,
    Group,
    RewardRef,
    Sampling,
    Step,
    StepContext,
    StepData,
)
from alignkit.contract.report import Block, Report
from alignkit_plugins.compare.comparison import (
    PoliciesOptions,
    checked_prompts,
    prompts_to_compare,
    sampled_at,
)
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.tables import table
from alignkit_plugins.evals.learned_from import trained_prompts, training_data_note

RIGHT = 0.5  # an answer that scores above this is right


class MeasuredStep(Step):
    """Policies answer prompts, and are compared by measures of their answers."""

    class Options(PoliciesOptions):
        sampling: Sampling = sampled_at(0)
        correct: RewardRef = Field(
            description=(
                "reward that is above one half for a right answer, such as `honesty_accuracy`"
            )
        )

    file: ClassVar[str]  # the file with all numbers
    options: Any

    def check_data(self, data: StepData) -> None:
        if prompts := checked_prompts(data, self.options.prompts, self.options.correct):
            self.check_prompts(prompts)

    def check_prompts(self, prompts: Sequence[Group]) -> None:
        """Raise DataError for prompts that lack what is measured."""

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # Before sampling: a missing key or file shows here
        scorer = context.scorer(options.correct)
        prompts, notes = prompts_to_compare(context.load(options.prompts))
        trained = [trained_prompts(context, policy, prompts) for policy in options.policies]
        notes += [
            f"sampled with {options.described()}",
            *training_data_note(context, trained, prompts),
        ]
        baseline = options.baseline_name
        rows, facts = self.measured(prompts, baseline, scorer, context)
        notes += facts.pop("notes", ())
        summary = {
            **facts,
            "left_out": len(prompts) - facts["prompts"],
            "notes": notes,
            "baseline": baseline,
            "results": list(map(plain, rows)),
        }
        context.write_json(f"{self.file}.json", summary)
        over = f"{facts['prompts']} prompts, {summary['left_out']} left out"
        means = table(rows, f"mean and 95% interval over {over}")
        compared = [row for row in rows if row.difference]
        differences = table(compared, f"minus {baseline}", differences=True)
        blocks: list[Block] = ["\n".join(notes), means, *[differences] * bool(compared)]
        return Artifact(summary=summary, report=Report(blocks))

    def measured(
        self, prompts: Sequence[Group], baseline: str | None, scorer: Any, context: StepContext
    ) -> tuple[list[Row], dict[str, Any]]:
        """The rows of all policies, and what else is said: `prompts` that count, and `notes`."""
        raise NotImplementedError


def is_right(score: float | None) -> bool | None:
    """Whether an answer with this score by `correct` is right; None without a score."""
    return None if score is None else score > RIGHT
