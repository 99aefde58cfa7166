"""A combination in which the worst of several rewards counts most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from alignkit import Add, CombinedReward, Field, Group, RewardCombination, RewardRef, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Weakest(RewardCombination):
    """A soft minimum: -temperature * log(sum(exp(-reward / temperature)))."""

    class Options(RewardCombination.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards by names of your choice"
        )
        temperature: float = Field(1.0, gt=0, description="near 0, only the lowest reward counts")

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        import torch  # slow, so not at the top: `alignkit plugins` loads every plugin

        scores = torch.stack(list(components.values()))  # [parts, responses]
        soft = -self.options.temperature * torch.logsumexp(
            -scores / self.options.temperature, dim=0
        )
        return CombinedReward(soft, soft, {"lowest": float(scores.min(dim=0).values.nanmean())})


@hookimpl
def register(add: Add) -> None:
    add("reward", "weakest", Weakest, "the lowest of several rewards counts most")
