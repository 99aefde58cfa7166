"""Reward model: a scalar head learns which response people preferred (Bradley-Terry).

Pairs: Stiennon et al. 2020, section 3.4. Rankings of K: InstructGPT 2022 eq. (1), all pairs of a prompt in one batch
element, averaged per prompt, each response run once. Margins: Llama 2 2023 eq. (2), table 27. Centring: Eisenstein
et al. 2023. Differs from the papers: tied responses give no pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignkit import (
    REWARD,
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Register,
    SelectContext,
    StageDefaults,
    Term,
    hookimpl,
    per_pair,
    resolved_pairs,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class RewardModel(Algorithm):
    """Learn preferences."""

    trains = REWARD
    needs = Needs(min_samples=2, pairs=True)
    # One epoch: InstructGPT found that more over-fit.
    defaults = StageDefaults(learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    class Options(Algorithm.Options):
        margin: Literal["none", "llama2-small", "llama2-large", "data"] = Field(
            "none", description="a pair's margin: by its level in one of Llama 2's tables, or the data's own number"
        )
        center_coefficient: float = Field(0.01, ge=0, description="pull of the scores' free level towards 0")

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raises DataError when margins are asked for and no pair has one of that kind; counts pairs without."""
        kind = self.options.margin
        if kind == "none" or context.validation:
            return groups
        margins = [pair.margin for group in groups for pair in resolved_pairs(group)]
        wanted = (int, float) if kind == "data" else str
        without = sum(not isinstance(margin, wanted) for margin in margins)
        if without == len(margins):
            what = "a number" if kind == "data" else "the name of a level"
            raise DataError(f"margin: {kind} needs pairs whose margin is {what}, and no pair has one")
        context.log(pairs_without_margin=without)
        return groups

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        weights = F.kwise_weights(batch.pairs.group_index)
        return {"rank": weights, "center": weights}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(out.scores)
        rank = F.pairwise_loss(better, worse, margin=self._margins(batch), p=batch.pairs.p)
        center = F.centering_loss(better, worse)
        return Loss(rank=per_pair(rank), center=per_pair(center, self.options.center_coefficient))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        better, worse = batch.pairs.take(out.scores)
        right = batch.pairs.right(out.scores)
        found = {"accuracy": per_pair(right), "score_gap": per_pair(better - worse)}
        for level in sorted({level for level in batch.pairs.levels if level is not None}):
            is_level = right.new_tensor([float(other == level) for other in batch.pairs.levels]) > 0
            found[f"accuracy/{level}"] = per_pair(right.masked_fill(~is_level, float("nan")))
        return found

    def _margins(self, batch: Batch) -> Tensor:
        """[P]"""
        kind = self.options.margin
        if kind == "none":
            return batch.pairs.margin.new_zeros(len(batch.pairs))
        if kind == "data":
            return batch.pairs.margin
        table = kind.removeprefix("llama2-")
        return batch.pairs.margin.new_tensor([_level(level, table) for level in batch.pairs.levels])


def _level(level: str | None, table: str) -> float:
    """Llama 2's margin of a level; pairs that state none count as its lowest."""
    if level is None:
        return 0.0
    return F.llama2_margin(level if level in ("better", "unsure") else f"{level}_better", table)


@hookimpl
def register_algorithms(register: Register) -> None:
    register("reward_model", RewardModel, summary="learn a scalar score from pairs or rankings")
