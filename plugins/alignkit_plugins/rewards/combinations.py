"""Combinations of rewards without state: conditioned on another reward, the smallest, the product, and a clipped one.

`when` is the conditioned reward of GDPO (Liu et al. 2026, arXiv:2601.05242, section 3.2): an easy reward counts only
where a hard one is reached, so that the easy one cannot replace it.
The smallest and the product are those of the parts that apply to a response; `when` and `clip` need all of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import model_validator

import alignkit
from alignkit import CombinedReward, Field, Group, Register, RewardCombination, RewardRef, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class When(RewardCombination):
    """A reward where another one is high enough, and a constant elsewhere."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward that counts under the condition")
        condition: RewardRef = Field(description="the reward that decides")
        at_least: float = Field(description="lowest score of `condition` with which `reward` counts")
        otherwise: float = Field(0.0, description="the reward of other responses")

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward, "condition": self.options.condition}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Choose for each response, [R]."""
        scores, condition = components["raw"], components["condition"]
        met = condition >= self.options.at_least
        chosen = scores.where(met, self.options.otherwise).masked_fill(scores.isnan() | condition.isnan(), float("nan"))
        return _combined(chosen, components, met_share=met[~condition.isnan()].to(chosen.dtype).mean())


class _Several(RewardCombination):
    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to combine, under names of your choice"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards


class Minimum(_Several):
    """The smallest of several rewards: a response is as good as its worst score."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """The smallest of the scores, [R] each."""
        smallest, *others = components.values()
        for scores in others:
            smallest = smallest.fmin(scores)  # NaN if both are
        return _combined(smallest, components)


class Product(_Several):
    """The product of several rewards, such as right (0 or 1) times short."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Multiply the scores, [R] each."""
        product, *others = components.values()
        for scores in others:
            both = product * scores.where(~scores.isnan(), 1.0)
            product = both.where(~product.isnan(), scores)
        return _combined(product, components)


class Clip(RewardCombination):
    """A reward within limits."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to clip")
        low: float | None = Field(None, description="the lowest reward")
        high: float | None = Field(None, description="the highest reward")

        @model_validator(mode="after")
        def _limits(self) -> Clip.Options:
            if self.low is None and self.high is None:
                raise ValueError("set low, high or both")
            if self.low is not None and self.high is not None and self.low >= self.high:
                raise ValueError(f"low {self.low} is not below high {self.high}")
            return self

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Clip the scores, [R]."""
        scores = components["raw"]
        clipped = scores.clamp(self.options.low, self.options.high)
        outside = (clipped != scores)[~scores.isnan()]
        return _combined(clipped, components, clipped_share=outside.to(scores.dtype).mean())


def _combined(reward: Tensor, components: Mapping[str, Tensor], **metrics: Tensor) -> CombinedReward:
    """A reward [R] on one scale, with the means of all parts."""
    means = {f"{name}_mean": x.nanmean() for name, x in components.items()}
    numbers = {**means, **metrics, "combined_mean": reward.nanmean()}
    return CombinedReward(reward, reward, {name: float(value) for name, value in numbers.items()})


@hookimpl
def register_combinations(register: Register) -> None:
    register("when", When, summary="a reward that counts only where another one is at least a threshold")
    register("min", Minimum, summary="the smallest of several rewards")
    register("product", Product, summary="the product of several rewards")
    register("clip", Clip, summary="a reward within limits")
