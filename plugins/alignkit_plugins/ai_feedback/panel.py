"""The judge `panel`: several judges, of different families at best, whose verdicts are combined.

A mean is less noisy than one judge (Verga et al. 2024, arXiv:2404.18796). The worst is harder to
exploit for a policy that learns from it (Coste et al. 2023, arXiv:2310.02743). A judge without a
verdict is left out. If no more than half remain, the panel has none, either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from alignkit import (
    CheckedJudge,
    Context,
    Field,
    Judge,
    JudgeRef,
    Options,
    Rating,
    RunFailed,
    Verdict,
)
from alignkit.judges import Item, Rated, Rubric
from alignkit_plugins.ai_feedback.judge_card import judge_names

Combine = Callable[[Sequence[float]], float]


class Panel(Judge):
    """Ask several judges, and combine what they say."""

    compares_by_rubric: ClassVar[bool] = True

    class Options(Judge.Options):
        judges: list[JudgeRef] = Field(min_length=2, description="judges to ask")
        combine: Literal["mean", "worst", "majority"] = Field(
            "mean",
            description=(
                "`mean`; `worst`: the least sure verdict if all prefer the same response, else a "
                "tie, and the lowest rating; `majority`: the response that more judges prefer, "
                "and the median rating"
            ),
        )

    options: Options

    def parts(self) -> Sequence[Any]:
        return self.options.judges

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._names = judge_names(self.options.judges)
        self._judges = [CheckedJudge(judge, context) for judge in self.options.judges]
        self._scales = [judge.scale for judge in self._judges]

    @property
    def scale(self) -> tuple[float, float] | None:
        """0 to 1 if all judges have scales; none if none has, as reward models."""
        return None if None in self._scales else (0.0, 1.0)

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        found = zip(*(judge.compare(items, rubric) for judge in self._judges), strict=True)
        return [self._verdict(verdicts) for verdicts in found]

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        if None in self._scales and any(self._scales):
            raise RunFailed(
                "panel: some of its judges rate on a scale and others, as reward models, without "
                "bounds; combine those of one kind, or compare responses in pairs"
            )
        found = zip(*(judge.rate(items, rubric) for judge in self._judges), strict=True)
        return [self._rating(ratings) for ratings in found]

    def _verdict(self, verdicts: Sequence[Verdict]) -> Verdict:
        known = [verdict for verdict in verdicts if verdict.p_first is not None]
        spent = {
            name: _sum([getattr(verdict, name) for verdict in verdicts])
            for name in ("calls", "tokens", "cost")
        }
        mass = statistics.fmean(verdict.mass for verdict in known or verdicts)
        parts = dict(zip(self._names, verdicts, strict=True))
        if reason := self._too_few(len(known), [verdict.reason for verdict in verdicts]):
            return Verdict(None, mass=mass, reason=reason, parts=parts, **spent)
        p = _COMPARED[self.options.combine](
            [verdict.p_first for verdict in known if verdict.p_first is not None]
        )
        orders = [verdict.p_orders for verdict in known if verdict.p_orders]
        both = None
        if self.options.combine == "mean" and len(orders) == len(known):
            first, second = (statistics.fmean(ps) for ps in zip(*orders, strict=True))
            both = (first, second)
        bounded = any(verdict.bounded for verdict in known)
        return Verdict(p, both, mass, bounded=bounded, parts=parts, **spent)

    def _rating(self, ratings: Sequence[Rating]) -> Rating:
        scores = [
            _share(rating.score, scale)
            for rating, scale in zip(ratings, self._scales, strict=True)
            if rating.score is not None
        ]
        spent = {
            name: _sum([getattr(rating, name) for rating in ratings])
            for name in ("calls", "tokens", "cost")
        }
        reason = self._too_few(len(scores), [rating.reason for rating in ratings])
        return Rating(None if reason else _RATED[self.options.combine](scores), reason, **spent)

    def _too_few(self, count: int, reasons: Sequence[str]) -> str:
        """Why a panel has no verdict, if this number of its judges has one; empty if it has one."""
        if count > len(self.options.judges) // 2:
            return ""
        first = next((reason for reason in reasons if reason), "no reason given")
        return (
            f"too few judges of the panel have a verdict: {count} of {len(self.options.judges)}; "
            f"{first}"
        )


def _share(score: float, scale: tuple[float, float] | None) -> float:
    """A rating as a share of its scale."""
    return score if scale is None else (score - scale[0]) / (scale[1] - scale[0])


def _sum(values: Sequence[Any]) -> Any:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _worst(ps: Sequence[float]) -> float:
    """The least sure verdict if all prefer the same response, else a tie; it is 1 - itself if the
    responses swap.
    """
    return min(ps) if min(ps) > 0.5 else max(ps) if max(ps) < 0.5 else 0.5


def _majority(ps: Sequence[float]) -> float:
    votes = sum(0 if Verdict(p).tied else math.copysign(1, p - 0.5) for p in ps)
    return 0.5 if votes == 0 else float(votes > 0)


_COMPARED: dict[str, Combine] = {"mean": statistics.fmean, "worst": _worst, "majority": _majority}
_RATED: dict[str, Combine] = {"mean": statistics.fmean, "worst": min, "majority": statistics.median}
