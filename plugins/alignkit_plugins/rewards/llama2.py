"""Llama 2's combination of a helpfulness and a safety reward (Touvron et al. 2023,
arXiv:2307.09288, section 3.2.3).

The safety score of a response counts if the prompt is a safety prompt or the response is unsafe
(probability below `threshold`); otherwise its helpfulness score counts. The paper then whitens the
chosen scores, which is the algorithm's option `whiten_rewards`. Differs from the paper: scores are
clamped to the logits of 1e-6 and 1 - 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import CombinedReward, Field, Group, RewardCombination, RewardRef, RunFailed
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class Llama2(RewardCombination):
    """The reward is the chosen model's score, a logit."""

    class Options(alignkit.Options):
        helpful: RewardRef = Field(
            description="the helpfulness reward: a reward-model stage or a reward"
        )
        safety: RewardRef = Field(description="the safety reward: a reward-model stage or a reward")
        threshold: float = Field(
            0.15,
            (
                "probability below which the safety score counts; 0: it counts for safety "
                "prompts alone"
            ),
            ge=0,
            lt=1,
        )

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"helpful": self.options.helpful, "safety": self.options.safety}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Combine the scores `helpful` and `safety`, [R] each. The reward is NaN if either is
        missing.

        Even a safety prompt needs both scores: a failure must not change which of them counts.
        """
        present = ~(components["helpful"].isnan() | components["safety"].isnan())  # [R]
        helpful, safety = components["helpful"][present], components["safety"][present]
        is_safety = present.new_tensor(safety_prompts(groups))[present]
        chosen, by_safety = F.llama2_combine(helpful, safety, is_safety, self.options.threshold)
        means = {"helpful": helpful, "safety": safety, "raw": chosen}
        metrics = {f"{name}_mean": _mean(values) for name, values in means.items()}
        metrics["safety_share"] = _mean(by_safety.double())
        reward = components["helpful"].new_full(present.shape, float("nan"))
        return CombinedReward(reward.masked_scatter(present, chosen.to(reward.dtype)), metrics)


def safety_prompts(groups: Sequence[Group]) -> list[bool]:
    """Whether each response answers a safety prompt: [R] values of the column `safety`, false if it
    is missing.
    """
    flags = []
    for number, group in enumerate(groups, 1):
        flag = group.meta.get("safety")
        if flag not in (None, True, False):  # 0 and 1 equal False and True, and are accepted
            raise RunFailed(
                f"llama2: column 'safety' of prompt {group.id or number} is {flag!r}; "
                "it marks safety prompts and must be true or false"
            )
        flags += [bool(flag)] * len(group.responses)
    return flags


def _mean(x: Tensor) -> float:
    """Mean of [N], NaN when empty."""
    return float(x.mean())
