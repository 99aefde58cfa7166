"""Judges that ask no model in words: a panel of other judges, and a reward model.

The mean of a panel is less noisy than one judge (Verga et al. 2024, arXiv:2404.18796). A judge
without a verdict is left out. If no more than half remain, the panel has none, either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

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
from alignkit.judges import Item, Rated, Rubric, costs
from alignkit_plugins.ai_feedback.judge_card import judge_names

NO_ROOM = "the prompt leaves the reward model no room for a response"


def joint(verdicts: Sequence[Verdict], **more: Any) -> Verdict:
    """The mean of several verdicts on the same pair. Those that are missing do not count, except
    for what they cost.
    """
    ps = [verdict.p_first for verdict in verdicts if verdict.p_first is not None]
    known = [verdict for verdict in verdicts if verdict.p_first is not None]
    more |= costs(verdicts)
    mass = statistics.fmean(verdict.mass for verdict in known or verdicts)
    if not ps:
        return Verdict(None, mass=mass, reason=verdicts[0].reason, **more)
    orders = [verdict.p_orders for verdict in known if verdict.p_orders]
    both = None
    if len(orders) == len(known):
        first, second = map(statistics.fmean, zip(*orders, strict=True))
        both = (first, second)
    bounded = any(verdict.bounded for verdict in known)
    verdict = Verdict(statistics.fmean(ps), both, mass, bounded=bounded, **more)
    return replace(verdict, p_first=0.5) if verdict.tied else verdict


class Panel(Judge):
    """Ask several judges; the mean of what they say counts."""

    compares_by_rubric: ClassVar[bool] = True

    class Options(alignkit.Options):
        judges: list[JudgeRef] = Field(min_length=2, description="judges to ask")

    options: Options

    def parts(self) -> Sequence[Any]:
        return self.options.judges

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judges = [CheckedJudge(judge, context) for judge in self.options.judges]

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        names = judge_names(self.options.judges)
        columns = [judge.compare(items, rubric) for judge in self._judges]
        found = []
        for verdicts in zip(*columns, strict=True):
            verdict = joint(verdicts, parts=dict(zip(names, verdicts, strict=True)))
            known = sum(each.p_first is not None for each in verdicts)
            if known <= len(verdicts) // 2:
                first = next((each.reason for each in verdicts if each.reason), "no reason given")
                few = f"{known} of {len(verdicts)}; {first}"
                reason = f"too few judges of the panel have a verdict: {few}"
                verdict = replace(
                    verdict, p_first=None, p_orders=None, bounded=False, reason=reason
                )
            found.append(verdict)
        return found


class RewardJudge(Judge):
    """Prefer the response that a reward model scores higher: a judge that was trained on people's
    pairs.

    P(first is better) is sigmoid(first - second), as in the reward model's loss (Bradley and Terry
    1952). The order in which responses are shown plays no part. A rating is the reward model's
    score.
    """

    reads_rubric: ClassVar[bool] = False

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
        groups = [Group(tuple(prompt), (Response(a), Response(b))) for prompt, a, b in items]
        scores = self._scores(groups)
        found = []
        for first, second in zip(scores[::2], scores[1::2], strict=True):
            if first is None or second is None:
                found.append(Verdict(None, mass=0.0, reason=NO_ROOM))
                continue
            p = 1 / (1 + math.exp(min(second - first, 700.0)))
            found.append(Verdict(p, (p, p)))
        return found

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        groups = [Group(tuple(prompt), (Response(text),)) for prompt, text in items]
        return [Rating(score, NO_ROOM if score is None else "") for score in self._scores(groups)]

    def _scores(self, groups: Sequence[Group]) -> list[float | None]:
        return list(self.context.models[self.options.reward_model.name].scores(groups))
