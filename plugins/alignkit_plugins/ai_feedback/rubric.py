"""Rewards that are a judge's ratings: `rating`, by one measure, and `rubric`, by weighted criteria.

The criteria of `rubric` are the recipe's, or each prompt's own (Gunjal et al. 2025, Rubrics as
Rewards, arXiv:2507.17746). With `aggregate: explicit` each criterion is asked alone, and the score
is the weighted share of those that are met (equation 1). With `implicit` one question shows all of
them with their weights (equation 2). Differs from the paper: ratings between met and not met count
in part, on a judge's scale with more than two steps. A criterion with a negative weight says what
is bad, and takes away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import model_validator

from alignkit import (
    CheckedJudge,
    Context,
    DataError,
    Field,
    Group,
    JudgeRef,
    Options,
    Rating,
    Reward,
    RunFailed,
)
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.formats.spoken import all_turns

ANY = "any"  # a rubric, for checks that only ask whether one is read


class Rated(Reward):
    """A judge's rating of each response, on its own scale."""

    class Options(Options):
        judge: JudgeRef = Field(description="judge that rates the responses")
        rubric: str | list[str] = Field(
            "", description="what a good response is; default: the judge's own rubric"
        )

    options: Options

    def check(self, folder: Path) -> None:
        CheckedJudge.check_rates(self.options.judge, self.options.rubric)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judge = CheckedJudge(self.options.judge, context)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        items = [
            (group.prompt, all_turns(response)) for group in groups for response in group.responses
        ]
        return {"": [rating.score for rating in self._judge.rate(items, self.options.rubric)]}


class Criterion(pydantic.BaseModel):
    """Something that a good response does, or with a negative weight, a bad one."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    text: str = Field(
        min_length=1, description="what a response has to do, such as `It names the dose.`"
    )
    weight: float = Field(
        1.0, description="share of the criterion in the score; below 0: what a bad response does"
    )


CRITERIA: pydantic.TypeAdapter[list[Criterion]] = pydantic.TypeAdapter(list[Criterion])


class Rubric(Reward):
    """The weighted share of criteria that a response meets, 1 if it meets all; missing if one has
    no rating.
    """

    class Options(Options):
        judge: JudgeRef = Field(
            description="judge that rates by each criterion; `scale: [0, 1]` makes it met or not"
        )
        criteria: list[Criterion] = Field(
            [], description="criteria for all prompts: {text, weight}; default weight: 1"
        )
        column: str = Field(
            "", description="column of the prompts with criteria of their own, which are added"
        )

        @model_validator(mode="after")
        def _some(self) -> Any:
            if not self.criteria and not self.column:
                raise ValueError("set 'criteria', or 'column' if each prompt has its own")
            if self.criteria and not self.column and not weighs(self.criteria):
                raise ValueError("criteria: one of the weights must be above 0")
            return self

    options: Options

    def check(self, folder: Path) -> None:
        CheckedJudge.check_rates(self.options.judge, ANY)

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._criteria(group)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judge = CheckedJudge(self.options.judge, context)
        if self._judge.scale is None:
            raise RunFailed(
                f"reward 'rubric': judge '{self.options.judge.name}' has no scale; use another one"
            )

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        """Each criterion is asked alone. Rows with the same criterion are asked about in one
        batch.
        """
        rows = [
            (group, self._criteria(group), all_turns(response))
            for group in groups
            for response in group.responses
        ]
        shares: list[list[float | None]] = [[None] * len(criteria) for _, criteria, _ in rows]
        asked: dict[str, list[tuple[int, int]]] = {}
        for row, (_, criteria, _) in enumerate(rows):
            for place, criterion in enumerate(criteria):
                asked.setdefault(criterion.text, []).append((row, place))
        for text, places in asked.items():
            ratings = self._judge.rate(
                [(rows[row][0].prompt, rows[row][2]) for row, _ in places], [text]
            )
            for (row, place), rating in zip(places, ratings, strict=True):
                shares[row][place] = self._share(rating)
        return {
            "": [
                weighted(criteria, own) for (_, criteria, _), own in zip(rows, shares, strict=True)
            ]
        }

    def _share(self, rating: Rating) -> float | None:
        """A rating as a share of the judge's scale."""
        low, high = self._judge.scale or (0.0, 1.0)
        return None if rating.score is None else (rating.score - low) / (high - low)

    def _criteria(self, group: Group) -> list[Criterion]:
        """The criteria of a prompt. Raises DataError if it has none, or some that cannot be
        read.
        """
        column = self.options.column
        if not column:
            return self.options.criteria
        where, written = f"rubric: {row_of(group)}", column_of("rubric", group, column)
        try:
            own = CRITERIA.validate_python(_written(written))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{where}: '{column}' is no list of {{text, weight}}: {place}: {first['msg']}"
            ) from None
        if not weighs([*self.options.criteria, *own]):
            raise DataError(f"{where}: '{column}' has no criterion with a weight above 0")
        return [*self.options.criteria, *own]


def _written(value: Any) -> Any:
    """Criteria as data sets write them: texts, or mappings; a text alone is one criterion."""
    rows = value if isinstance(value, list | tuple) else [value]
    return [{"text": row} if isinstance(row, str) else row for row in rows]


def weighs(criteria: Sequence[Criterion]) -> bool:
    """Whether a response can earn anything."""
    return any(criterion.weight > 0 for criterion in criteria)


def weighted(criteria: Sequence[Criterion], shares: Sequence[float | None]) -> float | None:
    """The weighted share of criteria that are met; None if one of them is unknown. What is bad
    takes away.
    """
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    earned = math.fsum(each.weight * share for each, share in zip(criteria, known, strict=True))
    return earned / math.fsum(each.weight for each in criteria if each.weight > 0)
