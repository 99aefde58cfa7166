"""The step `evaluate_reward`: how well rewards agree with people's preferences on pairs that
nothing was trained on.

Accuracy has intervals and is shown by people's margins, as in Llama 2 (Touvron et al. 2023,
arXiv:2307.09288, table 8), and by columns of the pairs. In addition to the paper, the step says how
far the scores of a reward model can be taken as probabilities, and how much of them is length
(Singhal et al. 2023, arXiv:2310.03716).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from alignkit.report import Block, Report
from alignkit_plugins.ai_feedback.judge_card import check_names, judge_names, sentence
from alignkit_plugins.compare.comparison import check_unique
from alignkit_plugins.compare.pairs import Gaps, accuracy, choices, gaps
from alignkit_plugins.compare.reward_columns import Column, label, scored_by
from alignkit_plugins.compare.rows import main_rows, plain
from alignkit_plugins.compare.tables import details, table
from alignkit_plugins.evaluate import reward_measures as measures
from alignkit_plugins.evaluate import rewardbench
from alignkit_plugins.evaluate.learned_from import log_odds, training_data_note


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
            for reward in self.options.rewards:
                data.check_prompts(reward, groups)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        scorers = [
            context.scorer(spec) for spec in options.rewards
        ]  # a missing key or file shows here
        judges = zip(judge_names(options.judges), options.judges, strict=True)
        checked = {name: CheckedJudge(part, context) for name, part in judges}
        read = context.load(options.pairs)
        groups = self._with_pairs(read)
        notes = self._notes(read, groups, context)
        groups, columns = scored_by(groups, options.rewards, scorers, context.say)
        pairs, cards = choices(groups), {}
        raters: dict[str, Gaps] = {column.name: gaps(pairs, column.name) for column in columns}
        for name, judge in checked.items():
            context.say(f"{context.out.name}: {name} compares {len(pairs)} pairs")
            raters[name], cards[name] = measures.judged(name, judge, pairs, context)
        rows, bins = [*accuracy(pairs, raters), *measures.relations(pairs, raters)], {}
        for column in columns:
            if not (reason := _uncalibrated(column, context)):
                found, bins[column.name] = measures.calibration(
                    pairs, raters[column.name], column.name
                )
                rows += found
            elif column.model is not None:
                notes.append(f"not read as probabilities: {column.name}: {reason}")
        for name, values in measures.breakdowns(pairs, self._columns(groups)).items():
            for value, places in values.items():
                rows += accuracy(pairs, raters, places, column=name, value=value)
        if rewardbench.applies(groups):
            rows += rewardbench.rows_of(groups, [column.name for column in columns])
        summary = {
            "prompts": len({pair.prompt for pair in pairs}),
            "pairs": len(pairs),
            "ties": sum(len(resolved_pairs(group)) for group in groups) - len(pairs),
            "notes": notes,
            "results": list(map(plain, rows)),
            "bins": bins,
            "judge_cards": cards,
        }
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("reward_evaluation.json", summary)
        title = (
            f"{len(pairs)} pairs of {summary['prompts']} prompts, without {summary['ties']} ties"
        )
        told = [sentence(*each) for each in cards.items()]
        blocks: list[Block] = [
            "\n".join([*notes, *told]),
            table(main_rows(rows), title),
            *details(rows),
        ]
        return Artifact(summary=summary, report=Report(blocks))

    def _with_pairs(self, read: Sequence[Group]) -> list[Group]:
        """The groups that have pairs. Raises DataError without any, or for a column that none
        has.
        """
        groups = [group for group in read if resolved_pairs(group)]
        if not groups:
            raise DataError(f"none of {len(read)} rows has a preference pair", option=("pairs",))
        known = sorted(set().union(*(group.meta for group in groups)))
        for place, column in enumerate(self.options.by):
            if column not in known:
                near = did_you_mean(column, known) or f"columns: {', '.join(known) or 'none'}"
                raise DataError(
                    f"no pair has a column '{column}'\nhelp: {near}", option=("by", place)
                )
        return groups

    def _columns(self, groups: Sequence[Group]) -> list[str]:
        """The columns to break accuracy down by; RewardBench's among them if all pairs have it."""
        if all(rewardbench.COLUMN in group.meta for group in groups):
            return list(dict.fromkeys([*self.options.by, rewardbench.COLUMN]))
        return self.options.by

    def _notes(
        self, read: Sequence[Group], groups: Sequence[Group], context: StepContext
    ) -> list[str]:
        """What a reader must know: rows without a pair, and pairs that reward models learned
        from.
        """
        notes = []
        if without := len(read) - len(groups):
            notes.append(f"{without} of {len(read)} rows have no pair and are left out")
        if note := training_data_note(context, self.options.rewards, groups, "rows"):
            notes.append(note)
            context.say(f"{context.out.name}: {note}")
        return notes


def _uncalibrated(column: Column, context: StepContext) -> str:
    """Why the differences of a column's scores cannot be read as log-odds; empty if they can."""
    if column.model is None:
        return "no reward model"
    known = log_odds(column.model, context.out.parent) if context.recipe is not None else None
    if known is None:
        return "nothing says whether its scores are log-odds"
    return "" if known else "its algorithm does not call them log-odds"
