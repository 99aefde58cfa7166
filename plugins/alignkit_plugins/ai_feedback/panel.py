"""Judges that ask no model in words: a panel of other judges, and a reward model.

The mean of a panel is less noisy than one judge (Verga et al. 2024, arXiv:2404.18796). A judge
without a verdict is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import alignkit
from alignkit import (
    CheckedJudge,
    Context,
    Field,
    Group,
    Judge,
    JudgeRef,
    Rating,
    Response,
    RewardRef,
    RunFailed,
    Verdict,
)
from alignkit.contract.reward import Item, Rated, Rubric, costs
from alignkit_plugins.ai_feedback.judge_card import ALL_BUT_ONE, judge_names, kind_of

NO_ROOM = "the prompt leaves the reward model no room for a response"


def joint(verdicts: Sequence[Verdict], judges: Sequence[str] = ()) -> Verdict:
    """The mean of several verdicts on the same pair. Those that are missing do not count, except
    for what they cost. judges: whose they are, for `missing`.
    """
    spent: Any = costs(verdicts)
    spent["missing"] = missing = list[str]()
    for judge, verdict in zip(judges, verdicts, strict=bool(judges)):
        if verdict.p_first is None:
            missing.append(f"{judge} ({kind_of(verdict)})")
    if len(missing) + 1 == len(judges):
        missing.append(ALL_BUT_ONE)
    ps, orders, masses = list[float](), list[tuple[float, float]](), list[float]()
    for verdict in verdicts:
        if verdict.p_first is not None:
            ps.append(verdict.p_first)
            masses.append(verdict.mass)
            if verdict.p_orders:
                orders.append(verdict.p_orders)
    if not ps:
        return Verdict(None, mass=0.0, reason=verdicts[0].reason, **spent)
    both = None
    if len(orders) == len(ps):
        first, second = map(statistics.fmean, zip(*orders, strict=True))
        both = (first, second)
    verdict = Verdict(statistics.fmean(ps), both, statistics.fmean(masses), **spent)
    return replace(verdict, p_first=0.5) if verdict.tied else verdict


class Panel(Judge):
    """Ask several judges, and take the mean of their verdicts."""

    compares_by_rubric = True

    class Options(alignkit.Options):
        judges: list[JudgeRef] = Field(min_length=2, description="judges to ask")

    options: Options

    def parts(self) -> Sequence[Any]:
        return self.options.judges

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judges = [CheckedJudge(judge, context) for judge in self.options.judges]

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        columns = [judge.compare(items, rubric) for judge in self._judges]
        names = judge_names(self.options.judges)
        return [joint(verdicts, names) for verdicts in zip(*columns, strict=True)]


class RewardJudge(Judge):
    """Prefer the response that a reward model scores higher: a judge that was trained on people's
    pairs.

    P(first is better) is sigmoid(first - second), as in the reward model's loss (Bradley and Terry
    1952). The order in which responses are shown plays no part. A rating is the reward model's
    score.
    """

    reads_rubric = False

    class Options(alignkit.Options):
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
        scores, verdicts = self._scores(items), []
        for first, second in zip(scores[::2], scores[1::2], strict=True):
            if first is None or second is None:
                verdicts.append(Verdict(None, mass=0.0, reason=NO_ROOM))
                continue
            p = 1 / (1 + math.exp(min(second - first, 700.0)))
            verdicts.append(Verdict(p, (p, p)))
        return verdicts

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        return [Rating(score, NO_ROOM if score is None else "") for score in self._scores(items)]

    def _scores(self, items: Sequence[Item | Rated]) -> list[float | None]:
        """A score of each response."""
        groups = [Group(tuple(prompt), tuple(map(Response, texts))) for prompt, *texts in items]
        return list(self.context.models[self.options.reward_model.name].scores(groups))
