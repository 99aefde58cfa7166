"""Verdicts from the log-probabilities of a judge's two answers, in both orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit import Verdict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Log-probabilities of the two answers in nats, or the reason why they are missing.

    bound: the largest log-probability of an answer that is -inf, because a server did not return
    it. tokens, cost: as those of a Verdict.
    """

    one: float = -math.inf
    two: float = -math.inf
    reason: str = ""
    bound: float = -math.inf
    tokens: int | None = None
    cost: float | None = None

    @property
    def mass(self) -> float:
        """Known probability of both answers together; NaN if the numbers are not
        log-probabilities.
        """
        if not (self.one <= 1e-3 and self.two <= 1e-3):  # also true for NaN; rounding may exceed 0
            return math.nan
        return math.exp(self.one) + math.exp(self.two)

    def unusable(self, min_mass: float) -> str:
        """Why this answer allows no verdict; empty if it does."""
        if self.reason:
            return self.reason
        if math.isnan(self.mass):
            return "the judge's numbers are not log-probabilities"
        if self.mass > 1.01:
            return "the judge's probabilities of both answers add up to more than 1"
        if self.mass < max(min_mass, 1e-30):
            return (
                f"the judge gives both answers together too little probability: {self.mass:.2g}, "
                f"min_mass {min_mass:g}"
            )
        return ""

    @property
    def bounded(self) -> bool:
        """Whether one answer is known only by its bound."""
        return math.isfinite(self.bound) and -math.inf in (self.one, self.two)

    def at_bound(self) -> tuple[float, float]:
        """Both log-probabilities; a missing answer is as likely as it can be."""
        return max(self.one, self.bound), max(self.two, self.bound)


def verdicts(answers: Sequence[Answer], min_mass: float) -> list[Verdict]:
    """Verdicts on n items from 2n answers in the order of `both_orders`. `mass` is the mean over
    both orders.

    An answer that a server did not return has a probability between 0 and its bound. It counts with
    the bound, which makes p least confident. If some value in this range would turn the decision,
    there is no verdict.
    """
    import torch

    from alignkit import functional as F

    def orders(logps: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
        split = torch.tensor(logps, dtype=torch.float64).reshape(2, n, 2)
        return split[0], split[1]

    n = len(answers) // 2
    bounds = orders(
        [answer.at_bound() if answer.bounded else (answer.one, answer.two) for answer in answers]
    )
    p_first = F.judge_probability(*bounds).tolist()
    by_order = list(zip(*(p.tolist() for p in F.order_probabilities(*bounds)), strict=True))
    extremes = list(
        zip(
            *(
                p.tolist()
                for p in F.order_probabilities(*orders([(a.one, a.two) for a in answers]))
            ),
            strict=True,
        )
    )
    result = []
    for i, (ab, ba) in enumerate(zip(answers[:n], answers[n:], strict=True)):
        mass = (ab.mass + ba.mass) / 2
        tokens = None if ab.tokens is None or ba.tokens is None else ab.tokens + ba.tokens
        cost = None if ab.cost is None or ba.cost is None else ab.cost + ba.cost
        reason = ab.unusable(min_mass) or ba.unusable(min_mass)
        if not reason and _undecided(by_order[i], extremes[i]):
            reason = "an answer is not among the tokens that the server returned, and could decide"
        if reason:
            mass = 0.0 if math.isnan(mass) else mass
            result.append(
                Verdict(None, mass=mass, reason=reason, calls=2, tokens=tokens, cost=cost)
            )
        else:
            bounded = ab.bounded or ba.bounded
            result.append(
                Verdict(
                    p_first[i],
                    by_order[i],
                    mass,
                    bounded=bounded,
                    calls=2,
                    tokens=tokens,
                    cost=cost,
                )
            )
    return result


def _undecided(at_bound: Sequence[float], at_zero: Sequence[float]) -> bool:
    """Whether the missing answers of both orders decide: P(first is better) if they have their
    bound, and if 0.
    """
    ranges = [sorted(ends) for ends in zip(at_bound, at_zero, strict=True)]
    low, high = (Verdict(sum(ends) / 2) for ends in zip(*ranges, strict=True))
    return _side(low) != _side(high)


def _side(verdict: Verdict) -> int:
    """1 if the first is better, -1 if the second is, 0 for a tie."""
    if verdict.p_first is None or verdict.tied:
        return 0
    return 1 if verdict.p_first > 0.5 else -1
