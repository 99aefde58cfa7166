"""SimPO, ORPO, CPO and CPL: preference pairs without a reward model and, but for CPL's `reference`,
without a reference.

SimPO, ORPO and CPO differ in the implicit reward of a response and in how its NLL is averaged. CPL,
contrastive preference learning, models preferences by regret. A response is a segment whose tokens
are the actions. Its score S = sum_t gamma^t alpha log pi(token t) is a discounted sum of
advantages, and P(better) = e^S+ / (e^S+ + e^(lambda S-)): eq. 5 with the conservative weight lambda
of section 3.3.
With `reference`, log pi/pi_ref replaces log pi; with gamma = lambda = 1 this is then DPO with
beta = alpha.
Differs from the papers: labels may be soft, and terms are then expectations over the label. CPL's
segments may differ in length, in which case the sum favors short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    per_pair,
    per_token,
)
from alignkit import functional as F
from alignkit_plugins.algorithms.dpo import Pairwise, better_tokens, over_label

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Term


class ReferenceFree(Pairwise):
    """The loss -log sigma(reward of the better - reward of the worse - margin), plus the NLL of the
    better one.
    """

    needs = Needs(min_samples=2, pairs=True)
    # How the NLL is averaged: over tokens, or over pairs of each better response's mean or sum.
    nll_aggregation: ClassVar[Literal["token_mean", "sequence_mean", "sequence_sum"]]

    def preference_loss(self, margin: Tensor) -> Tensor:
        """The loss of pairs whose first response is the better one: [P] -> [P]."""
        return F.preference_loss(margin)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o = self.options
        better, worse = batch.pairs.take(self.rewards(batch, out))
        losses = over_label(batch, self.preference_loss, better - worse)
        terms = {"preference": per_pair(losses, o.preference_coefficient)}
        if o.nll_coefficient:
            terms["nll"] = self._nll(batch, out)
        return Loss(**terms)

    def _nll(self, batch: Batch, out: Outputs) -> Term:
        o, p = self.options, batch.pairs.p
        if self.nll_aggregation == "token_mean":
            return per_token(-out.logprobs, o.nll_coefficient)
        over_tokens = F.mean_tokens if self.nll_aggregation == "sequence_mean" else F.sum_tokens
        better, worse = batch.pairs.take(-over_tokens(out.logprobs, batch.mask))
        return per_pair(p * better + (1 - p) * worse, o.nll_coefficient)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        by_token = self.nll_aggregation == "token_mean"
        return {"nll": better_tokens(batch)} if by_token else {}


class SimPO(ReferenceFree):
    """The implicit reward is the mean log-probability of a token, and the better one must win by a
    margin (Meng et al. 2024, arXiv:2405.14734, eq. 6).
    """

    nll_aggregation = "token_mean"

    class Options(Algorithm.Options):
        preference_coefficient: ClassVar[float] = 1.0
        beta: float = Field(
            2.0, "scale of the implicit reward: the mean log-probability of a token", gt=0
        )
        target_margin: float = Field(
            1.0, "margin the better response must win by: SimPO's gamma", ge=0
        )
        nll_coefficient: float = Field(0.0, "weight of the NLL term: above 0 it is CPO-SimPO", ge=0)

    def preference_loss(self, margin: Tensor) -> Tensor:
        return F.preference_loss(margin - self.options.target_margin)

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return self.options.beta * F.mean_tokens(out.logprobs, batch.mask)


class ORPO(ReferenceFree):
    """The implicit reward is the log-odds of the mean token (Hong et al. 2024, arXiv:2403.07691,
    eqs. 4 and 7).
    """

    nll_aggregation = "sequence_mean"

    class Options(Algorithm.Options):
        odds_ratio_coefficient: float = Field(
            0.1, "weight of the odds-ratio term: the paper's lambda, TRL's beta", gt=0
        )
        nll_coefficient: ClassVar[float] = 1.0

        @property
        def preference_coefficient(self) -> float:
            return self.odds_ratio_coefficient

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return F.log_odds(F.mean_tokens(out.logprobs, batch.mask))


class CPO(ReferenceFree):
    """The implicit reward is the log-probability of the response (Xu et al. 2024,
    arXiv:2401.08417).
    """

    nll_aggregation = "sequence_sum"

    class Options(Algorithm.Options):
        preference_coefficient: ClassVar[float] = 1.0
        beta: float = Field(
            0.1, "scale of the implicit reward: the log-probability of the response", gt=0
        )
        nll_coefficient: float = Field(1.0, "weight of the NLL term: TRL's cpo_alpha", ge=0)

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return self.options.beta * F.sum_tokens(out.logprobs, batch.mask)


class CPL(Pairwise):
    """Learn from pairs of segments, with the policy's log-probabilities as advantages (Hejna et al.
    2023, arXiv:2310.13639, eq. 5).
    """

    class Options(Algorithm.Options):
        alpha: float = Field(
            0.1, "scale of the segment score: advantage per nat of log-probability", gt=0
        )
        gamma: float = Field(1.0, "discount per token", gt=0, le=1)
        conservative_weight: float = Field(
            0.5,
            "weight of the worse segment's score: the paper's lambda; 1: no regularization",
            gt=0,
            le=1,
        )
        reference: bool = Field(False, "measure log-probabilities relative to the reference")
        nll_coefficient: float = Field(
            0.0, "weight of the NLL term: over both segments' tokens", ge=0
        )

    @property
    def needs(self) -> Needs:
        return Needs(reference_logprobs=self.options.reference, min_samples=2, pairs=True)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(self.rewards(batch, out))
        losses = F.cpl_loss(better, worse, batch.pairs.p, self.options.conservative_weight)
        terms = {"cpl": per_pair(losses)}
        if self.options.nll_coefficient:
            terms["nll"] = per_token(-out.logprobs, self.options.nll_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """`nll` is averaged over the tokens of paired segments."""
        if not self.options.nll_coefficient:
            return {}
        paired = batch.mask.new_zeros(len(batch.mask))
        paired[batch.pairs.better] = True
        paired[batch.pairs.worse] = True
        return {"nll": batch.weights("token") * paired[:, None]}

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """Segment scores S: [R]. Masked tokens advance the discount, too."""
        logprobs = out.logprobs
        if self.options.reference:
            logprobs = logprobs - batch.reference_logprobs
        return F.segment_advantage(logprobs, batch.mask, self.options.alpha, self.options.gamma)
