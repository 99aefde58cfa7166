"""This process's share of a global batch, cut into packed micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from alignkit.batch import Batch
from alignkit.models.examples import Examples
from alignkit.models.packing import indivisible, micro_batches
from alignkit.training.collectives import Reducer


@dataclass(frozen=True)
class MicroBatch:
    """Groups that one forward pass takes. rows: the indices of their responses in the global batch."""

    examples: Examples
    batch: Batch
    rows: list[int]


@dataclass
class Share:
    """The groups of this process. Bundles stay whole.

    examples: the global batch. budget: returns the most tokens of a micro-batch, which shrinks if memory runs out.
    """

    examples: Examples
    reducer: Reducer
    device: torch.device
    budget: Callable[[], int]
    _cut: tuple[int | None, list[MicroBatch]] = field(init=False, default=(None, []))  # the budget, and the cuts

    def micro_batches(self) -> list[MicroBatch]:
        """The share in micro-batches, cut again only if the budget has changed."""
        if self._cut[0] != (budget := self.budget()):
            groups = self.examples.groups
            units = indivisible([encoded.group.bundle for encoded in groups])
            lengths = [sum(groups[index].length for index in unit) for unit in units]
            own = sorted(index for unit in self.reducer.own(lengths) for index in units[unit])
            cut = micro_batches([groups[index] for index in own], budget)
            self._cut = (budget, [self._micro_batch([own[place] for place in places]) for places in cut])
        return self._cut[1]

    def _micro_batch(self, indices: list[int]) -> MicroBatch:
        examples = self.examples.take(indices)
        return MicroBatch(examples, examples.batch(self.device), self.examples.rows_of(indices))
