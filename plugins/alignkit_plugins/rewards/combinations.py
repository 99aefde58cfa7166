"""The smallest of several rewards: a response is as good as its worst score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import CombinedReward, Field, Group, RewardCombination, RewardRef

if TYPE_CHECKING:
    from torch import Tensor


class Minimum(RewardCombination):
    """The smallest of the rewards that apply to a response; NaN if none does."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to combine, under names of your choice"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """The smallest of the scores, [R] each."""
        smallest, *others = components.values()
        for scores in others:
            smallest = smallest.fmin(scores)  # NaN if both are
        metrics = {f"{name}_mean": float(scores.nanmean()) for name, scores in components.items()}
        return CombinedReward(
            smallest, smallest, {**metrics, "combined_mean": float(smallest.nanmean())}
        )
