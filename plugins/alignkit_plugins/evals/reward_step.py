"""The step `evaluate_reward`: how well rewards agree with people's preferences on pairs that
nothing was trained on.

Accuracy has intervals and is shown by people's margins, as in Llama 2 (Touvron et al. 2023,
arXiv:2307.09288, table 8), and by columns of the pairs. In addition to the paper, the step says how
far the scores of a reward model can be taken as probabilities, and how much of them is length
(Singhal et al. 2023, arXiv:2310.03716).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    Verdict,
    seeds,
)
from alignkit import functional as F
from alignkit.contract.report import Block, Report
from alignkit.data.group import resolved_pairs, write_groups
from alignkit.errors import did_you_mean
from alignkit_plugins.ai_feedback.judge_card import (
    checked_judges,
    judge_card,
    judge_names,
    mapped,
    sentence,
    with_people,
)
from alignkit_plugins.compare.comparison import check_unique, label, scored_by, units_note
from alignkit_plugins.compare.pairs import Choice, Gaps, accuracy, choices, gaps
from alignkit_plugins.compare.rows import Row, main_rows, plain
from alignkit_plugins.compare.scores import Prompt
from alignkit_plugins.compare.tables import details, table
from alignkit_plugins.evals.calibration import OF_RATERS, calibrated
from alignkit_plugins.evals.learned_from import (
    log_odds,
    trained_prompts,
    training_data_note,
)
from alignkit_plugins.text.spoken import as_judged, for_judges

SAME = Verdict(None, reason="both answers are the same to a judge")


class EvaluateReward(Step):
    """Count how often the chosen response of a pair scores higher by each reward, and is preferred
    by each judge.
    """

    class Options(alignkit.Options):
        rewards: list[RewardRef] = Field([], "rewards to evaluate")
        judges: list[JudgeRef] = Field([], "judges to evaluate on the pairs")
        pairs: DataRef = Field(description="held-out preference pairs")
        by: list[str] = Field([], "columns of the pairs to break accuracy down by")

        def check_values(self) -> None:
            raters = [*map(label, self.rewards), *judge_names(self.judges)]
            check_unique("rewards and judges", raters)
            if not raters:
                raise ValueError("name at least one reward or judge")

    options: Options

    def check_data(self, data: StepData) -> None:
        if (read := data.load(self.options.pairs)) is not None:
            groups = self._with_pairs(read)
            for reward in self.options.rewards:
                data.check_prompts(reward, groups)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # A missing key or file shows here
        scorers = {label(spec): context.scorer(spec) for spec in options.rewards}
        judges = checked_judges(options.judges, context)
        read = context.load(options.pairs)
        groups = self._with_pairs(read)
        trained = [trained_prompts(context, spec, groups) for spec in options.rewards]
        notes = training_data_note(context, trained, groups, "rows")
        if len(groups) < len(read):
            notes.append(f"{len(read) - len(groups)} of {len(read)} rows have no pair")
        notes += units_note(groups)
        groups = scored_by(groups, scorers, context.say)
        pairs, cards, bins = choices(groups), dict[str, Any](), dict[str, Any]()
        raters: dict[str, Gaps] = {name: gaps(pairs, name) for name in scorers}
        for name, judge in judges.items():
            context.say(f"{context.out.name}: {name} compares {len(pairs)} pairs")
            raters[name], cards[name] = judged(name, judge, pairs, context)
        rows = accuracy(pairs, raters)
        for name, spec in zip(scorers, options.rewards, strict=True):
            if log_odds(spec, context.out.parent):
                found, in_bins = calibration(pairs, raters[name], name)
                rows += found
                bins |= in_bins
        for column in ("margin", "the chosen response", *options.by):
            for value, places in breakdown(pairs, column).items():
                rows += accuracy(pairs, raters, places, column=column, value=value)
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
        sentences = list(notes)
        for name, one in cards.items():
            sentences.append(sentence(name, one))
            context.say(f"{context.out.name}: {sentences[-1]}")
        lines = "\n".join(sentences)
        blocks: list[Block] = [lines, table(main_rows(rows), title), *details(rows)]
        return Artifact(summary=summary, report=Report(blocks))

    def _with_pairs(self, read: Sequence[Group]) -> list[Group]:
        """The groups that have pairs. Raises DataError without any, or for a column that none
        has.
        """
        groups = list(filter(resolved_pairs, read))
        if not groups:
            raise DataError(f"none of {len(read)} rows has a preference pair", option=("pairs",))
        known = sorted(set().union(*(group.meta for group in groups)))
        for place, column in enumerate(self.options.by):
            if column not in known:
                near = did_you_mean(column, known, "columns")
                raise DataError(
                    f"no pair has a column '{column}'\nhelp: {near}", option=("by", place)
                )
        return groups


def judged(
    name: str, judge: CheckedJudge, pairs: Sequence[Choice], context: StepContext
) -> tuple[list[float | None], dict[str, Any]]:
    """How much more a judge prefers the better response of each pair, and its card.

    Half of the pairs, drawn by the seed, have the better response first: a judge that ignores its
    duty to ask in both orders must not learn the answer from the place. Pairs whose texts are equal
    as a judge reads them have no verdict, and no judge is asked.
    """
    texts = [(as_judged(pair.better), as_judged(pair.worse)) for pair in pairs]
    differing = [place for place, (better, worse) in enumerate(texts) if better != worse]
    order = seeds.stream(context.seed, "judged pairs", name).permutation(len(differing))
    turned, items = [bool(number % 2) for number in order], []
    for place, turn in zip(differing, turned, strict=True):
        first, second = reversed(texts[place]) if turn else texts[place]
        items.append((for_judges(pairs[place].group), first, second))
    verdicts = mapped(judge.compare, name, context.map)(items)
    preferred: list[float | None] = [None] * len(pairs)
    judgments = []
    for place, turn, verdict in zip(differing, turned, verdicts, strict=True):
        judgments.append((pairs[place].unit, verdict))
        if (p := verdict.p_first) is not None:
            gap = 1 - 2 * p if turn else 2 * p - 1
            preferred[place] = 0.0 if F.nearly_equal(gap, 0.0) else gap
    people = with_people(judgments, [not turn for turn in turned])
    for place in set(range(len(pairs))) - set(differing):
        judgments.append((pairs[place].unit, SAME))
    return preferred, judge_card(judgments, people=people)


def breakdown(pairs: Sequence[Choice], column: str) -> dict[str, list[int]]:
    """The places of pairs by a column of the prompts, by people's margin in words (Llama 2, table
    8), or by which response is longer.
    """
    places = dict[str, list[int]]()
    for place, pair in enumerate(pairs):
        value = pair.group.meta.get(column)
        if column == "margin" and isinstance(pair.margin, str):
            value = pair.margin
        elif column == "the chosen response":
            lengths = ("equally long", "longer", "shorter")  # by the sign
            value = lengths[(pair.longer > 0) - (pair.longer < 0)]
        if value is not None:
            places.setdefault(str(value), []).append(place)
    return dict(sorted(places.items()))


def calibration(
    pairs: Sequence[Choice], gaps: Gaps, rater: str
) -> tuple[list[Row], Mapping[str, Any]]:
    """Whether a reward is right as often as its scores say, if it is a Bradley-Terry model; and its
    bins.

    Its confidence in a pair is sigmoid(|gap|); a label with a probability is right with that
    probability.
    """
    sure, right, prompts = list[float](), list[float](), list[Prompt]()
    for pair, gap in zip(pairs, gaps, strict=True):
        if gap is not None:
            sure.append(1 / (1 + math.exp(-abs(gap))))
            hit = 0.5
            if gap > 0:
                hit = pair.p
            elif gap < 0:
                hit = 1 - pair.p
            right.append(hit)
            prompts.append((str(len(prompts)), pair.unit))
    return calibrated({rater: sure}, {rater: right}, OF_RATERS, prompts)
