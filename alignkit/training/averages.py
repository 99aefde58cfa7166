"""Averages: of unreduced terms over a global batch, and of metrics over steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.batch import Batch
from alignkit.loss import Term
from alignkit.training.collectives import ONE_PROCESS, Collectives


class Averages:
    """Weighted means of unreduced terms over several micro-batches.

    skip_nan: entries that are NaN do not count. In metrics, NaN means "unknown"; in a loss, it must stay visible.
    """

    def __init__(self, *, skip_nan: bool = False) -> None:
        self.skip_nan = skip_nan
        self.sums: dict[str, float] = {}
        self.totals: dict[str, float] = {}

    def add(self, terms: Mapping[str, Term], batch: Batch, weights: Mapping[str, Tensor] | None = None) -> None:
        for name, term in terms.items():
            weight = (weights or {}).get(name)
            weight = batch.weights(term.per) if weight is None else weight
            counted = (weight > 0) & ~term.values.isnan() if self.skip_nan else weight > 0
            values = torch.where(counted, term.values, 0.0)
            weight = torch.where(counted, weight, 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + float((values * weight).sum())
            self.totals[name] = self.totals.get(name, 0.0) + float(weight.sum())

    def means(self, collectives: Collectives = ONE_PROCESS) -> dict[str, float]:
        """The mean of every term with an entry that counts, over the micro-batches of all processes."""
        sums, totals = collectives.sum(self.sums), collectives.sum(self.totals)
        return {name: sums[name] / totals[name] for name in sums if totals[name]}


class StepAverages:
    """Means of metrics over optimizer steps. Skipped steps are only counted, because their numbers are not finite."""

    def __init__(self) -> None:
        self.skipped = 0
        self._values: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        if "skipped" in metrics:
            self.skipped += 1
            return
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    @property
    def learned(self) -> bool:
        """Whether any step had a gradient."""
        return any(self._values.get("grad_norm", ()))


def weighted_sum(term: Term, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """The sum of a term's entries, weighted: []. Entries of weight 0 may be anything, NaN included."""
    weights = batch.weights(term.per) if weights is None else weights
    return (torch.where(weights > 0, term.values, 0.0) * weights).sum()
