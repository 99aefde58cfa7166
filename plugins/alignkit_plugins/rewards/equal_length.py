"""A reward at equal length: what a reward says of a response beyond its length.

Reward models like long answers, or short ones, and a policy learns that first (Singhal et al. 2023,
arXiv:2310.03716). As in post-hoc calibration (Huang et al. 2024, arXiv:2409.17407), a regression on
length is subtracted from the scores. Differs from the paper: one line instead of a local
regression, fitted to the differences between responses to the same prompt, because prompts that ask
for longer answers may also be harder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import (
    CombinedReward,
    Field,
    Group,
    RewardCombination,
    RewardRef,
)
from alignkit import functional as F
from alignkit_plugins.formats.text_metrics import sampled_length

if TYPE_CHECKING:
    from torch import Tensor


class EqualLength(RewardCombination):
    """The reward minus its slope in length, measured within the prompts of the batch."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward: a reward-model stage or a reward")
        unit_variance: bool = Field(
            False,
            description="also scale scores, so that those of a prompt have variance 1 on average",
        )

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Correct the scores, [R]. The mean over scored responses stays. Without two samples of a
        prompt, all stays.

        Raises DataError for a response without tokens, such as one from a file.
        """
        scores = components["raw"]
        rows = [
            (number, sampled_length(r, "equal_length"))
            for number, group in enumerate(groups)
            for r in group.responses
        ]
        index, lengths = scores.new_tensor(rows).view(-1, 2).unbind(dim=1)  # [R] each
        present = ~scores.isnan()
        slope = F.slope_within_groups(scores[present], lengths[present], index[present])
        corrected = scores - slope * (lengths - lengths[present].mean())
        metrics = {"slope": float(slope)}
        if self.options.unit_variance:
            deviation = F.std_within_groups(corrected[present], index[present])
            corrected = corrected / deviation if deviation > 0 else corrected
            metrics["std"] = float(deviation)
        return CombinedReward(reward=corrected, raw=corrected, metrics=metrics)
