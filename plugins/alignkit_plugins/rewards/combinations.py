"""Combinations of rewards: weighted sums, and a reward at equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import CombinedReward, Field, Group, RewardCombination, RewardRef
from alignkit import functional as F
from alignkit_plugins.text.text_metrics import sampled_length

if TYPE_CHECKING:
    from torch import Tensor


class WeightedSum(RewardCombination):
    """The weighted sum of the rewards that apply to a response; NaN if none does.

    As in TRL, a part that does not apply is left out of the sum, and the weights of the others stay
    as they are.
    """

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to combine, under names of your choice"
        )
        weights: dict[str, float] = Field(description="weight of each reward, by its name")

        def check_values(self) -> None:
            if lacking := sorted(self.rewards.keys() - self.weights.keys()):
                raise ValueError(f"no weight for {', '.join(lacking)}; add it to 'weights'")
            if unknown := sorted(self.weights.keys() - self.rewards.keys()):
                names = ", ".join(unknown)
                raise ValueError(f"weights for {names}, which are not among the rewards")

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Sum the components, [R] each."""
        weights = self.options.weights
        reward = F.sum_present([weights[name] * components[name] for name in weights])
        metrics = {"raw_mean": float(reward.nanmean())}
        for name, scores in components.items():
            metrics[f"{name}_mean"] = float(scores.nanmean())
        return CombinedReward(reward, metrics)


class EqualLength(RewardCombination):
    """The reward minus its slope in length, measured within the prompts of the batch.

    Reward models like long answers, or short ones, and a policy learns that first (Singhal et al.
    2023, arXiv:2310.03716). As in post-hoc calibration (Huang et al. 2024, arXiv:2409.17407), a
    regression on length is subtracted from the scores. Differs from the paper: one line instead of
    a local regression, fitted to the differences between responses to the same prompt, because
    prompts that ask for longer answers may also be harder.
    """

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward: a reward-model stage or a reward")
        unit_variance: bool = Field(
            False, "also scale scores, so that those of a prompt have variance 1 on average"
        )

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Correct the scores, [R]. The mean over scored responses stays.

        Without two samples of a prompt, all stays. Raises DataError for a response without tokens,
        such as one from a file.
        """
        scores, rows = components["raw"], []
        for number, group in enumerate(groups):
            for response in group.responses:
                rows.append((number, sampled_length(response, "equal_length")))
        index, lengths = scores.new_tensor(rows).view(-1, 2).unbind(dim=1)  # [R] each
        present = ~scores.isnan()
        slope = F.slope_within_groups(scores[present], lengths[present], index[present])
        corrected = scores - slope * (lengths - lengths[present].mean())
        metrics = {"slope": float(slope)}
        if self.options.unit_variance:
            deviation = F.std_within_groups(corrected[present], index[present])
            corrected = corrected / deviation if deviation > 0 else corrected
            metrics["std"] = float(deviation)
        return CombinedReward(corrected, metrics)
