"""GDPO's combination of rewards: each reward is normalized within its group before the sum (Liu et al. 2026,
arXiv:2601.05242, section 3).

Normalizing the sum gives different mixtures of rewards the same advantage. GDPO normalizes every reward within the
prompt's group, sums, and normalizes the sums over the batch. The result is an advantage, which `grpo` with
`scale_by_std: false` learns from unchanged: its groups have mean 0.
Differs from the paper: eps is added to the variance of the batch, inside the root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import model_validator

import alignkit
from alignkit import CombinedReward, Field, Group, Register, RewardCombination, RewardRef, hookimpl
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class GDPO(RewardCombination):
    """The raw reward is the weighted sum of the scores."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to combine, under names of your choice"
        )
        weights: dict[str, float] = Field({}, description="weight of each reward, by its name; default: 1")

        @model_validator(mode="after")
        def _known(self) -> GDPO.Options:
            if unknown := sorted(self.weights.keys() - self.rewards.keys()):
                raise ValueError(f"weights for {', '.join(unknown)}, which are not among the rewards")
            return self

    options: Options
    leaves_out = True

    @property
    def whitens(self) -> bool:
        return True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Combine the scores, [R] each. Where one does not apply, it has no part in its group's statistics."""
        weights = {name: self.options.weights.get(name, 1.0) for name in components}
        raw = F.sum_present([weights[name] * x for name, x in components.items()])
        index = raw.new_tensor([number for number, group in enumerate(groups) for _ in group.responses])
        advantages = {name: x.clone() for name, x in components.items()}
        for x in advantages.values():
            applies = ~x.isnan()
            x[applies] = F.grpo_advantages(x[applies], index[applies])
        reward = F.sum_present([weights[name] * x for name, x in advantages.items()])
        present = ~reward.isnan()
        if present.any():
            reward[present] = F.whiten(reward[present])
        metrics = {f"{name}_mean": float(x.nanmean()) for name, x in components.items()}
        return CombinedReward(reward=reward, raw=raw, metrics={**metrics, "raw_mean": float(raw.nanmean())})


@hookimpl
def register_combinations(register: Register) -> None:
    register("gdpo", GDPO, summary="rewards normalized one by one within their group, then summed and whitened")
