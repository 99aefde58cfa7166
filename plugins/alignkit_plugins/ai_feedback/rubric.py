"""Rewards that are a judge's ratings: `rating`, by one measure, and `rubric`, by weighted criteria.

The criteria of `rubric` are each prompt's own (Gunjal et al. 2025, Rubrics as Rewards,
arXiv:2507.17746). Each criterion is asked alone, and the score is the weighted share of
those that are met (equation 1). Differs from the paper: ratings between met and not met count in
part, on a judge's scale with more than two steps. A criterion with a negative weight says what is
bad, and takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydantic

from alignkit import (
    CheckedJudge,
    Context,
    DataError,
    Field,
    Group,
    JudgeRef,
    Options,
    Reward,
    RunFailed,
)
from alignkit.contract.reward import Rated as Item
from alignkit.errors import faults_of
from alignkit_plugins.text.rows import column_of, row_of
from alignkit_plugins.text.spoken import as_judged, for_judges

ANY = "any"  # a rubric, for checks that only ask whether one is read


class Judged(Reward):
    """What rewards have in common that ask the judge of their options."""

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judge = CheckedJudge(self.options.judge, context)


class Rated(Judged):
    """A judge's rating of each response, on its own scale."""

    class Options(Options):
        judge: JudgeRef = Field(description="judge that rates the responses")
        rubric: str | list[str] = Field(
            "", "what a good response is; default: the judge's own rubric"
        )

    options: Options

    def check(self, folder: Path) -> None:
        CheckedJudge.check_rates(self.options.judge, self.options.rubric)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.bounds = self._judge.scale or self.bounds

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        ratings = self._judge.rate([item for _, item in answered(groups)], self.options.rubric)
        return [rating.score for rating in ratings]


class Criterion(pydantic.BaseModel):
    """Something that a good response does, or with a negative weight, a bad one."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    text: str = Field(
        min_length=1, description="what a response has to do, such as `It names the dose.`"
    )
    weight: float = Field(
        1.0, "share of the criterion in the score; below 0: what a bad response does"
    )


CRITERIA: pydantic.TypeAdapter[list[Criterion]] = pydantic.TypeAdapter(list[Criterion])


class Rubric(Judged):
    """The weighted share of a prompt's criteria that a response meets, 1 if it meets all; missing
    if one has no rating.
    """

    class Options(Options):
        judge: JudgeRef = Field(
            description="judge that rates by each criterion; `scale: [0, 1]` makes it met or not"
        )
        column: str = Field(
            "rubric",
            (
                "column of the prompts with their criteria: a list of {text, weight}; "
                "default weight: 1"
            ),
        )

    options: Options

    def check(self, folder: Path) -> None:
        CheckedJudge.check_rates(self.options.judge, ANY)

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._criteria(group)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        if self._judge.scale is None:
            name = self.options.judge.name
            raise RunFailed(f"reward 'rubric': judge '{name}' has no scale; use another one")

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        """Each criterion is asked alone. Rows with the same criterion are asked about in one
        batch.
        """
        items = answered(groups)
        low, high = self._judge.scale or (0.0, 1.0)
        by_criterion: dict[str, list[int]] = {}  # criterion -> items
        for number, (group, _) in enumerate(items):
            for criterion in self._criteria(group):
                by_criterion.setdefault(criterion.text, []).append(number)
        shares: dict[tuple[int, str], float | None] = {}
        for text, numbers in by_criterion.items():
            ratings = self._judge.rate([items[number][1] for number in numbers], [text])
            for number, rating in zip(numbers, ratings, strict=True):
                score = rating.score
                shares[number, text] = None if score is None else (score - low) / (high - low)
        scores = []
        for number, (group, _) in enumerate(items):
            criteria = self._criteria(group)
            met = [shares[number, criterion.text] for criterion in criteria]
            scores.append(weighted(criteria, met))
        return scores

    def _criteria(self, group: Group) -> list[Criterion]:
        """The criteria of a prompt. Raises DataError if it has none, or some that cannot be
        read.
        """
        column = self.options.column
        where, written = f"rubric: {row_of(group)}: '{column}'", column_of("rubric", group, column)
        try:
            criteria = CRITERIA.validate_python(written)
        except pydantic.ValidationError as error:
            problem = f"is no list of {{text, weight}}: {faults_of(error)[0]}"
            raise DataError(f"{where} {problem}") from None
        if not any(criterion.weight > 0 for criterion in criteria):
            raise DataError(f"{where} has no criterion with a weight above 0")
        return criteria


def answered(groups: Sequence[Group]) -> list[tuple[Group, Item]]:
    """Each response as a judge rates it, with its group."""
    items: list[tuple[Group, Item]] = []
    for group in groups:
        prompt = for_judges(group)
        for response in group.responses:
            items.append((group, (prompt, as_judged(response))))
    return items


def weighted(criteria: Sequence[Criterion], shares: Sequence[float | None]) -> float | None:
    """The weighted share of criteria that are met; None if one of them is unknown.

    What is bad takes away.
    """
    earned, most = 0.0, 0.0
    for criterion, share in zip(criteria, shares, strict=True):
        if share is None:
            return None
        earned += criterion.weight * share
        most += max(criterion.weight, 0.0)
    return earned / most
