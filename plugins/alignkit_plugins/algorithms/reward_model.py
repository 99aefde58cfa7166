"""Reward model: a scalar head learns which response people prefer (Bradley-Terry).

Pairs: Stiennon et al. 2020 (arXiv:2009.01325, section 3.4). Rankings: InstructGPT (Ouyang et al.
2022, arXiv:2203.02155, eq. 1); all pairs of a ranking share a weight of 1, and each response runs
through the model once. Margins: Llama 2 (Touvron et al. 2023, arXiv:2307.09288, eq. 2 and table
27). Centering: Eisenstein et al. 2023 (arXiv:2312.09244). Differs from the papers: tied responses
form no pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    Trains,
    per_pair,
)
from alignkit import functional as F
from alignkit.data.group import resolved_pairs

if TYPE_CHECKING:
    from torch import Tensor

FEW = 50  # pairs, from which nothing general is learned


class RewardModel(Algorithm):
    """Score the better response of a pair higher than the worse."""

    trains = Trains.REWARD
    needs = Needs(min_samples=2, pairs=True)
    # One epoch: InstructGPT found that more overfit.
    defaults = StageDefaults(
        learning_rate=5e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    class Options(Algorithm.Options):
        margin: Literal["none", "llama2-small", "llama2-large", "data"] = Field(
            "none",
            description=(
                "margin of a pair: from Llama 2's table by its level, or the number in the data"
            ),
        )
        center_coefficient: float = Field(
            0.01, ge=0, description="weight of the term that centers scores around 0"
        )

    @property
    def log_odds(self) -> bool:
        """Only without margins, which pull the scores of a pair further apart than its log-odds."""
        return self.options.margin == "none"

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raise DataError if no pair has the kind of margin that the options ask for; count the
        pairs that lack it.

        Warn of too few pairs.
        """
        kind = self.options.margin
        margins = [pair.margin for group in groups for pair in resolved_pairs(group)]
        if not context.validation and len(margins) < FEW:
            context.say(
                f"warning: {len(margins)} pairs are too few for a reward model; expected {FEW} or "
                "more"
            )
        if kind == "none" or context.validation:
            return groups
        wanted = (int, float) if kind == "data" else str
        missing = sum(not isinstance(margin, wanted) for margin in margins)
        if missing == len(margins):
            expected = "a number" if kind == "data" else "the name of a level"
            raise DataError(
                f"'margin: {kind}' needs pairs whose margin is {expected}, but no pair has one"
            )
        context.log(pairs_without_margin=missing)
        return groups

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        weights = F.kwise_weights(batch.pairs.group_index) * batch.weights("pair")
        return {"rank": weights, "center": weights}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(out.scores)
        rank = F.pairwise_loss(better, worse, margin=self._margins(batch), p=batch.pairs.p)
        center = F.centering_loss(better, worse)
        return Loss(rank=per_pair(rank), center=per_pair(center, self.options.center_coefficient))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """`accuracy/LEVEL` is over the pairs whose margin is that level."""
        right, levels = batch.pairs.right(out.scores), batch.pairs.levels
        metrics = batch.pairs.metrics(out.scores)
        for level in sorted({level for level in levels if level is not None}):
            others = right.new_tensor([other != level for other in levels]).bool()
            metrics[f"accuracy/{level}"] = per_pair(right.masked_fill(others, float("nan")))
        return metrics

    def _margins(self, batch: Batch) -> Tensor:
        """Margins of the pairs: [P]."""
        kind = self.options.margin
        if kind == "none":
            return batch.pairs.margin.new_zeros(len(batch.pairs))
        if kind == "data":
            return batch.pairs.margin
        table = kind.removeprefix("llama2-")
        return batch.pairs.margin.new_tensor([_level(level, table) for level in batch.pairs.levels])


def _level(level: str | None, table: str) -> float:
    """Llama 2's margin of a level; 0, the lowest, for a pair without a level."""
    if level is None:
        return 0.0
    return F.llama2_margin(level if level in ("better", "unsure") else f"{level}_better", table)
