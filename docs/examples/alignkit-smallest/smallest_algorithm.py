"""An algorithm: a response counts by how much better it is than the others to its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignkit import Add, Algorithm, Batch, Loss, Needs, Outputs, Source, hookimpl, per_response
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class Nudge(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(advantages="sequence", min_samples=2)

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        return {"advantages": F.rloo_advantages(rollouts.rewards, rollouts.group_index)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logprobs = F.sum_tokens(out.logprobs, batch.mask)
        return Loss(policy_loss=per_response(-batch["advantages"] * logprobs))


@hookimpl
def register(add: Add) -> None:
    add("algorithm", "nudge", Nudge, "towards better than average")
