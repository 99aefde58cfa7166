"""A reward with mean 0 and variance 1 over the run so far, as RL libraries normalize (running mean and variance).

The statistics take in the responses of each iteration once, and are part of the checkpoint (Chan et al. 1979: the
moments of two samples together). They include the iteration that they are applied to, as in OpenAI baselines.
Later rewards count less than with `whiten`: the scale of a reward no longer follows each batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import CombinedReward, Field, Group, Register, RewardCombination, RewardRef, hookimpl
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class RunningNormalization(RewardCombination):
    """The raw reward is the score itself."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to normalize")
        shift: bool = Field(True, description="also subtract the mean; false: only divide by the standard deviation")

    options: Options

    @property
    def whitens(self) -> bool:
        return True

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Normalize the scores, [R]. The deviation counts as 1 while all scores are equal."""
        scores = components["raw"]
        self._take_in(scores[~scores.isnan()])
        mean, deviation = self.state.get("mean", 0.0), math.sqrt(self.state.get("variance", 0.0))
        if F.nearly_equal(mean + deviation, mean):
            deviation = 1.0
        reward = (scores - (mean if self.options.shift else 0.0)) / deviation
        return CombinedReward(reward, scores, {"raw_mean": float(scores.nanmean()), "mean": mean, "std": deviation})

    def _take_in(self, scores: Tensor) -> None:
        """Add scores [N] to the count, the mean and the population variance."""
        if not len(scores):
            return
        old, new = self.state.get("count", 0), len(scores)
        count, mean = old + new, self.state.get("mean", 0.0)
        gap = float(scores.mean()) - mean
        squares = old * self.state.get("variance", 0.0) + new * float(scores.var(unbiased=False))
        variance = (squares + gap**2 * old * new / count) / count
        self.state = {"count": count, "mean": mean + gap * new / count, "variance": variance}


@hookimpl
def register_combinations(register: Register) -> None:
    register("running_normalization", RunningNormalization, summary="a reward scaled to variance 1 over the run so far")
