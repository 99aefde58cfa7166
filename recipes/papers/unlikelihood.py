"""Unlikelihood on pairs, the baseline of DPO's figure 2 (Rafailov et al. 2023, section 6): raise
log P of the better answer, and lower that of the worse one. It knows no reference, and no bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import Add, Algorithm, Batch, Field, Loss, Needs, Outputs, hookimpl, per_pair
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class Unlikelihood(Algorithm):
    """Make better answers likelier and worse answers less likely."""

    needs = Needs(min_samples=2, pairs=True)

    class Options(Algorithm.Options):
        alpha: float = Field(0.5, "weight of the worse answers", ge=0, le=1)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        sums: Tensor = F.sum_tokens(out.logprobs, batch.mask)  # [R]
        better, worse = batch.pairs.take(sums)  # [P]
        return Loss(better=per_pair(-better), worse=per_pair(worse, self.options.alpha))


@hookimpl
def register(add: Add) -> None:
    add("algorithm", "unlikelihood", Unlikelihood, "raise better answers and lower worse ones")
