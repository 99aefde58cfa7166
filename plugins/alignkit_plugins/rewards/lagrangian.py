"""A reward under a constraint: the mean of a cost stays below a limit (Safe RLHF, Dai et al. 2023, arXiv:2310.12773).

The reward is r - lambda * c (eq. 8 there). After each iteration lambda moves by dual ascent on the mean cost of the
iteration's responses, and never below 0 (Ray et al. 2019). It is part of the checkpoint.
Differs from the paper: lambda itself moves, not its logarithm, by the iteration's mean instead of a moving average, and
after the iteration, so that all of its rewards have one lambda.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import CombinedReward, Field, Group, Register, RewardCombination, RewardRef, hookimpl
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class Lagrangian(RewardCombination):
    """Lambda rises while the mean cost is above the limit, and falls while it is below."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to maximize")
        cost: RewardRef = Field(description="the reward to keep low on average, such as how harmful a response is")
        limit: float = Field(description="highest mean cost")
        multiplier: float = Field(1.0, ge=0, description="lambda in the first iteration: reward per unit of cost")
        multiplier_rate: float = Field(0.1, gt=0, description="change of lambda per iteration and unit of excess cost")
        rescale: bool = Field(
            False, description="divide by 1 + lambda, so that a large lambda does not enlarge rewards"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward, "cost": self.options.cost}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Combine reward and cost, [R] each, with the lambda that earlier iterations left."""
        o, multiplier = self.options, self._multiplier
        scores, cost, total = components["raw"], components["cost"], self.total(groups, components)
        mean_cost = float(cost.nanmean())
        if not cost.isnan().all():
            self.state["multiplier"] = max(0.0, multiplier + o.multiplier_rate * (mean_cost - o.limit))
        metrics = {"raw_mean": float(scores.nanmean()), "cost_mean": mean_cost, "multiplier": multiplier}
        return CombinedReward(total, total, metrics)

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        multiplier = self._multiplier
        total = F.sum_present([components["raw"], -multiplier * components["cost"]])
        return total / (1 + multiplier if self.options.rescale else 1)

    @property
    def _multiplier(self) -> float:
        return float(self.state.get("multiplier", self.options.multiplier))


@hookimpl
def register_combinations(register: Register) -> None:
    register("lagrangian", Lagrangian, summary="a reward minus a cost whose weight adapts until its mean is low enough")
