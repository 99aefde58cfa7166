"""CPL: contrastive preference learning (Hejna et al. 2023, arXiv:2310.13639): pairs of segments, regret-based.

A response is a segment whose tokens are the actions; its score S = sum_t gamma^t alpha log pi(token t) is a discounted
sum of advantages, and P(better) = e^S+ / (e^S+ + e^(lam S-)), eq. (5) with the conservative weight of section 3.3.
With `reference`, log pi/pi_ref in place of log pi; with gamma = lam = 1 that is DPO with beta = alpha.
Differs from the paper: soft labels; segments of unequal length, which the sum favours when they are short.
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
    Register,
    StageDefaults,
    Term,
    hookimpl,
    per_pair,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class CPL(Algorithm):
    """Learn from pairs of segments, as if the policy's log-probabilities were their advantages."""

    defaults = StageDefaults(learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1)

    class Options(Algorithm.Options):
        alpha: float = Field(0.1, gt=0, description="advantage of a nat of log-probability")
        gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
        lam: float = Field(0.5, gt=0, le=1, description="conservative weight of the worse segment; 1: none")
        reference: bool = Field(False, description="log-probabilities count relative to the reference's")
        nll_coefficient: float = Field(0.0, ge=0, description="weight of cloning: mean NLL of a token of both segments")

    @property
    def needs(self) -> Needs:
        return Needs(reference_logprobs=self.options.reference, min_samples=2, pairs=True)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(self._scores(batch, out))
        terms = {"cpl": per_pair(F.cpl_loss(better, worse, batch.pairs.p, self.options.lam))}
        if self.options.nll_coefficient:
            terms["nll"] = per_token(-out.logprobs, self.options.nll_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """`bc` is a mean over the tokens of segments that stand in a pair."""
        if not self.options.nll_coefficient:
            return {}
        paired = batch.mask.new_zeros(len(batch.mask)).index_fill(0, batch.pairs.better, True)
        paired = paired.index_fill(0, batch.pairs.worse, True)
        return {"bc": (batch.mask & paired[:, None]).float()}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        scores = self._scores(batch, out)
        better, worse = batch.pairs.take(scores)
        return {
            "accuracy": per_pair(batch.pairs.right(scores)),
            "segment/better": per_pair(better),
            "segment/worse": per_pair(worse),
        }

    def _scores(self, batch: Batch, out: Outputs) -> Tensor:
        """S of responses: [R]. Time counts from a response's first token, whether it counts or not."""
        logprobs = out.logprobs
        if self.options.reference:
            logprobs = logprobs - batch.reference_logprobs
        return F.segment_advantage(logprobs, batch.mask, self.options.alpha, self.options.gamma)


@hookimpl
def register_algorithms(register: Register) -> None:
    register("cpl", CPL, summary="contrastive preference learning on segments, with a discount; DPO is a special case")
