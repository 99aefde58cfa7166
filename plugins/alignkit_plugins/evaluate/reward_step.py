"""The step `evaluate_reward`: how well rewards agree with people's preferences on pairs that
nothing was trained on.

Accuracy has intervals and is shown by people's margins, as in Llama 2 (Touvron et al. 2023,
arXiv:2307.09288, table 8), and by columns of the pairs. In addition to the paper, the step says how
far the scores of a reward model can be taken as probabilities, and how much of them is length
(Singhal et al. 2023, arXiv:2310.03716).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import (
    Artifact,
    CheckedJudge,
    DataError,
    DataRef,
    Field,
    Group,
    JudgeRef,
    RewardRef,
    Step,
    StepContext,
    StepData,
)
from alignkit.data.group import resolved_pairs, write_groups
from alignkit.errors import did_you_mean
from alignkit_plugins.ai_feedback.judge_card import check_names, judge_names
from alignkit_plugins.compare import pair_metrics as metrics
from alignkit_plugins.compare.comparison import check_unique
from alignkit_plugins.compare.pairs import Comparison, comparisons, prompts_of
from alignkit_plugins.compare.reward_columns import Column, label, scored_by
from alignkit_plugins.evaluate import reward_report as report
from alignkit_plugins.evaluate import rewardbench, rewardbench2
from alignkit_plugins.evaluate.learned_from import log_odds, training_data_note
from alignkit_plugins.evaluate.reward_judged import judged


class EvaluateReward(Step):
    """Count how often the chosen response of a pair scores higher by each reward, and is preferred
    by each judge.
    """

    class Options(alignkit.Options):
        rewards: list[RewardRef] = Field(default_factory=list, description="rewards to evaluate")
        judges: list[JudgeRef] = Field(
            default_factory=list, description="judges to evaluate on the pairs"
        )
        pairs: DataRef = Field(description="held-out preference pairs")
        by: list[str] = Field(
            default_factory=list, description="columns of the pairs to break accuracy down by"
        )
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            check_unique("rewards", [label(spec) for spec in self.rewards])
            if not self.rewards and not self.judges:
                raise ValueError("name at least one reward or judge")
            check_names(self.rewards, self.judges)
            return self

    options: Options

    def check_data(self, data: StepData) -> None:
        if (read := data.load(self.options.pairs)) is not None:
            groups = self._with_pairs(read)
            self._columns(groups)
            for reward in self.options.rewards:
                data.check_prompts(reward, groups)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # A missing key or file shows here
        scorers = [context.scorer(spec) for spec in options.rewards]
        judges = zip(judge_names(options.judges), options.judges, strict=True)
        checked = {name: CheckedJudge(part, context) for name, part in judges}
        read = context.load(options.pairs)
        groups = self._with_pairs(read)
        by = self._columns(groups)
        count = len(groups)
        groups, columns = scored_by(
            groups,
            options.rewards,
            scorers,
            lambda name: context.say(f"{context.out.name}: scoring {count} prompts with {name}"),
        )
        rows = {column.name: comparisons(groups, column.name) for column in columns}
        why = {column.name: _uncalibrated(column, context) for column in columns} | dict.fromkeys(
            checked, metrics.NO_MODEL
        )
        cards = {}
        for name, judge in checked.items():
            rows[name], cards[name] = judged(name, judge, groups, context)
        several = rewardbench2.applies(groups)
        found = {name: _measured(pairs, by, why[name]) for name, pairs in rows.items()}
        # A judge gives no scores, of which the highest would count.
        best = {
            column.name: rewardbench2.scored(groups, column.name) for column in columns if several
        }
        summary: dict[str, Any] = {
            "prompts": len(set(prompts_of(groups))),
            "pairs": sum(len(resolved_pairs(group)) for group in groups),
            "ties": sum(pair.p == 0.5 for group in groups for pair in resolved_pairs(group)),
            "notes": self._notes(read, groups, context),
            "rewards": {
                name: {**each, "best_of_n": best.get(name)} for name, each in found.items()
            },
            "agreement": metrics.agreement(rows),
            "judge_cards": cards,
        }
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("reward_evaluation.json", summary)
        return Artifact(summary=summary, report=report.report(summary))

    def _with_pairs(self, read: Sequence[Group]) -> list[Group]:
        groups = [group for group in read if resolved_pairs(group)][: self.options.limit]
        if not groups:
            raise DataError(f"none of {len(read)} rows has a preference pair", option=("pairs",))
        rewardbench2.check(groups)
        return groups

    def _columns(self, groups: Sequence[Group]) -> list[str]:
        """The columns to break accuracy down by; RewardBench's among them if all pairs have it."""
        known = sorted({name for group in groups for name in group.meta})
        for place, column in enumerate(self.options.by):
            if column not in known:
                near = did_you_mean(column, known) or f"columns: {', '.join(known) or 'none'}"
                raise DataError(
                    f"no pair has a column '{column}'\nhelp: {near}", option=("by", place)
                )
        benchmark = (
            [rewardbench.COLUMN]
            if all(rewardbench.COLUMN in group.meta for group in groups)
            else []
        )
        return list(dict.fromkeys([*self.options.by, *benchmark]))

    def _notes(
        self, read: Sequence[Group], groups: Sequence[Group], context: StepContext
    ) -> list[str]:
        """What a reader must know: rows without a pair, and pairs that reward models learned
        from.
        """
        without = sum(not resolved_pairs(group) for group in read)
        notes = [f"{without} of {len(read)} rows have no pair and are left out"] if without else []
        if note := training_data_note(context, self.options.rewards, groups, "rows"):
            notes.append(note)
            context.say(f"{context.out.name}: {note}")
        return notes


def _uncalibrated(column: Column, context: StepContext) -> str:
    """Why the differences of a column's scores cannot be read as log-odds; empty if they can."""
    if column.model is None:
        return metrics.NO_MODEL
    known = log_odds(column.model, context.out.parent) if context.recipe is not None else None
    if known is None:
        return "nothing says whether its scores are log-odds"
    return "" if known else "its algorithm does not call them log-odds"


def _measured(
    pairs: Sequence[Comparison], by: Sequence[str], uncalibrated: str
) -> Mapping[str, Any]:
    """What is known of one column. uncalibrated: why its differences are no log-odds; empty if they
    are.
    """
    found = {
        **metrics.accuracy(pairs),
        "by_margin": metrics.by_margin(pairs),
        "by": {column: metrics.by_column(pairs, column) for column in by},
        "length": metrics.length(pairs),
        "calibration": None if uncalibrated else metrics.calibration(pairs),
        "uncalibrated": uncalibrated,
    }
    subsets = found["by"].get(rewardbench.COLUMN, {})
    found["sections"] = rewardbench.sections(
        {name: row["correct"] / row["pairs"] for name, row in subsets.items()}
    )
    return found
