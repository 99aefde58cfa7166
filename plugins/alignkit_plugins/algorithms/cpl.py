"""CPL: contrastive preference learning (Hejna et al. 2023, arXiv:2310.13639), which models
preferences by regret.

A response is a segment whose tokens are the actions. Its score S = sum_t gamma^t alpha log pi(token
t) is a discounted sum of advantages, and P(better) = e^S+ / (e^S+ + e^(lambda S-)): eq. 5 with the
conservative weight lambda of section 3.3. With `reference`, log pi/pi_ref replaces log pi; with
gamma = lambda = 1 this is then DPO with beta = alpha. Differs from the paper: labels may be soft,
and segments may differ in length, in which case the sum favors short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    StageDefaults,
    Term,
    per_pair,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class CPL(Algorithm):
    """Learn from pairs of segments, with the policy's log-probabilities as advantages."""

    defaults = StageDefaults(
        learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1
    )

    class Options(Algorithm.Options):
        alpha: float = Field(
            0.1,
            gt=0,
            description="scale of the segment score: advantage per nat of log-probability",
        )
        gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
        conservative_weight: float = Field(
            0.5,
            gt=0,
            le=1,
            description=(
                "weight of the worse segment's score: the paper's lambda; 1: no regularization"
            ),
        )
        reference: bool = Field(
            False, description="measure log-probabilities relative to the reference"
        )
        nll_coefficient: float = Field(
            0.0, ge=0, description="weight of the NLL term: over both segments' tokens"
        )

    @property
    def needs(self) -> Needs:
        return Needs(reference_logprobs=self.options.reference, min_samples=2, pairs=True)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(self._scores(batch, out))
        terms = {
            "cpl": per_pair(
                F.cpl_loss(better, worse, batch.pairs.p, self.options.conservative_weight)
            )
        }
        if self.options.nll_coefficient:
            terms["nll"] = per_token(-out.logprobs, self.options.nll_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """`nll` is averaged over the tokens of paired segments."""
        if not self.options.nll_coefficient:
            return {}
        paired = batch.mask.new_zeros(len(batch.mask)).index_fill(0, batch.pairs.better, True)
        paired = paired.index_fill(0, batch.pairs.worse, True)
        return {"nll": batch.weights("token") * paired[:, None]}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return batch.pairs.metrics(self._scores(batch, out))

    def _scores(self, batch: Batch, out: Outputs) -> Tensor:
        """Segment scores S: [R]. Masked tokens advance the discount, too."""
        logprobs = out.logprobs
        if self.options.reference:
            logprobs = logprobs - batch.reference_logprobs
        return F.segment_advantage(logprobs, batch.mask, self.options.alpha, self.options.gamma)
