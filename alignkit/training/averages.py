"""Averages of unreduced terms over the global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignkit.batch import Batch
from alignkit.errors import RunFailed
from alignkit.loss import Per, Term

if TYPE_CHECKING:
    pass


class Averages:
    """Weighted means of unreduced terms over several micro-batches.

    unknown: entries that are not a number do not count, as in an algorithm's report; in a loss they are a fault.
    """

    def __init__(self, *, unknown: bool = False) -> None:
        self.unknown = unknown
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, terms: Mapping[str, Term], batch: Batch, weights: Mapping[str, Tensor] | None = None) -> None:
        for name, term in terms.items():
            weight = _weights(term, batch, (weights or {}).get(name))
            counted = (weight > 0) & ~term.values.isnan() if self.unknown else weight > 0
            values = torch.where(counted, term.values, 0.0)
            weight = torch.where(counted, weight, 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + float((values * weight).sum())
            self.counts[name] = self.counts.get(name, 0.0) + float(weight.sum())

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / self.counts[name] for name in self.sums if self.counts[name]}


def _count(per: Per, batch: Batch) -> Tensor:
    """1 where an entry of this kind counts, else 0."""
    if per is Per.TOKEN:
        return batch.mask.float()
    if per is Per.RESPONSE:
        return batch.mask.any(dim=1).float()
    if per is Per.PAIR:
        return torch.ones(len(batch.pairs), device=batch.mask.device)
    return torch.ones(len(batch.groups), device=batch.mask.device)


def _weights(term: Term, batch: Batch, given: Tensor | None) -> Tensor:
    """What each entry of a term counts; raises RunFailed where the term has not the shape that it must have."""
    count = _count(term.per, batch)
    for weights in (count, count if given is None else given):
        if weights.shape != term.values.shape:
            shapes = f"{tuple(term.values.shape)}, not {tuple(weights.shape)}"
            raise RunFailed(f"a term per {term.per.value} has shape {shapes}")
    return count if given is None else given


def _weighted(term: Term, batch: Batch, weights: Tensor | None) -> Tensor:
    weights = _weights(term, batch, weights)
    return (torch.where(weights > 0, term.values, 0.0) * weights).sum()
