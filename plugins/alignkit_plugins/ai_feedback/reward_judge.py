"""The judge `reward_judge`: a reward model prefers the response that it scores higher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from alignkit import (
    Field,
    Group,
    Judge,
    Options,
    Rating,
    Response,
    RewardRef,
    RunFailed,
    Verdict,
)
from alignkit.judges import Item, Rated, Rubric

NO_ROOM = "the prompt leaves the reward model no room for a response"


class RewardJudge(Judge):
    """Prefer the response that a reward model scores higher: a judge that was trained on people's
    pairs.

    P(first is better) is sigmoid(first - second), as in the reward model's loss (Bradley and Terry
    1952). The order in which responses are shown plays no part. A rating is the reward model's
    score.
    """

    reads_rubric: ClassVar[bool] = False

    class Options(Options):
        reward_model: RewardRef = Field(
            description="stage that trains a reward model, or {folder: PATH}"
        )

    options: Options

    def check(self, folder: Path) -> None:
        model = self.options.reward_model
        if model.kind not in ("stage", "folder"):
            raise RunFailed(
                f"reward_judge: '{model.name}' is not a reward model; name a stage that trains one"
            )

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        groups = [
            Group(tuple(prompt), (Response(first), Response(second)))
            for prompt, first, second in items
        ]
        scores = self.context.models[self.options.reward_model.name].scores(groups)
        return [
            _by_scores(first, second)
            for first, second in zip(scores[::2], scores[1::2], strict=True)
        ]

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        groups = [Group(tuple(prompt), (Response(text),)) for prompt, text in items]
        scores = self.context.models[self.options.reward_model.name].scores(groups)
        return [Rating(score, NO_ROOM if score is None else "") for score in scores]


def _by_scores(first: float | None, second: float | None) -> Verdict:
    if first is None or second is None:
        return Verdict(None, mass=0.0, reason=NO_ROOM)
    p = 1 / (1 + math.exp(min(second - first, 700.0)))
    return Verdict(p, (p, p))
