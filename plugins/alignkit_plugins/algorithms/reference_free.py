"""SimPO, ORPO and CPO: preference pairs without a reward model and without a reference.

SimPO: Meng et al. 2024, arXiv:2405.14734, eq. 6. ORPO: Hong et al. 2024, arXiv:2403.07691, eqs. 4
and 7. CPO: Xu et al. 2024, arXiv:2401.08417. They differ in the implicit reward of a response and
in how its NLL is averaged. Differs from the papers: labels may be soft, and both terms are then
expectations over the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

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

NLLAggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
NLL_AGGREGATION = (
    "how the NLL is averaged: over tokens, or over pairs of each better response's mean or sum"
)


class ReferenceFree(Algorithm):
    """The loss -log sigma(reward of the better - reward of the worse - margin), plus the NLL of the
    better one.
    """

    needs = Needs(min_samples=2, pairs=True)
    defaults = StageDefaults(
        learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1
    )

    def coefficients(self) -> tuple[float, float]:
        """Weights of the preference term and of the NLL term."""
        return 1.0, self.options.nll_coefficient

    def margin(self) -> float:
        """The amount by which the better response's reward must exceed the worse one's."""
        return 0.0

    def reward(self, sums: Tensor, means: Tensor) -> Tensor:
        """Implicit rewards of responses, from the sums and the means of their log-probabilities:
        [R], [R] -> [R].
        """
        raise NotImplementedError

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(self._rewards(batch, out))
        p, margin, (coefficient, nll_coefficient) = (
            batch.pairs.p,
            self.margin(),
            self.coefficients(),
        )
        # A soft label: the expectation, because the other response is better with probability 1 -
        # p.
        losses = p * F.preference_loss(better - worse - margin)
        losses = losses + (1 - p) * F.preference_loss(worse - better - margin)
        terms = {"preference": per_pair(losses, coefficient)}
        if nll_coefficient:
            terms["nll"] = self._nll(batch, out, nll_coefficient)
        return Loss(**terms)

    def _nll(self, batch: Batch, out: Outputs, coefficient: float) -> Term:
        if self.options.nll_aggregation == "token_mean":
            return per_token(-out.logprobs, coefficient)
        over_tokens = (
            F.mean_tokens if self.options.nll_aggregation == "sequence_mean" else F.sum_tokens
        )
        better, worse = batch.pairs.take(-over_tokens(out.logprobs, batch.mask))
        return per_pair(batch.pairs.p * better + (1 - batch.pairs.p) * worse, coefficient)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """With `token_mean`, `nll` counts a response as often as it is the better one of a pair."""
        if self.options.nll_aggregation != "token_mean":
            return {}
        return {"nll": batch.weights("token") * batch.pairs.times_better(len(batch.mask))[:, None]}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return batch.pairs.metrics(self._rewards(batch, out))

    def _rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return self.reward(
            F.sum_tokens(out.logprobs, batch.mask), F.mean_tokens(out.logprobs, batch.mask)
        )


class SimPO(ReferenceFree):
    """The implicit reward is the mean log-probability of a token, and the better one must win by a
    margin.
    """

    class Options(Algorithm.Options):
        beta: float = Field(
            2.0,
            gt=0,
            description="scale of the implicit reward: the mean log-probability of a token",
        )
        target_margin: float = Field(
            1.0, ge=0, description="margin the better response must win by: SimPO's gamma"
        )
        nll_coefficient: float = Field(
            0.0, ge=0, description="weight of the NLL term: above 0 it is CPO-SimPO"
        )
        nll_aggregation: NLLAggregation = Field("token_mean", description=NLL_AGGREGATION)

        @model_validator(mode="after")
        def _nll_is_used(self) -> SimPO.Options:
            return _check_nll(self)

    def margin(self) -> float:
        return float(self.options.target_margin)

    def reward(self, sums: Tensor, means: Tensor) -> Tensor:
        return self.options.beta * means


class ORPO(ReferenceFree):
    """The implicit reward is the log-odds of the mean token."""

    class Options(Algorithm.Options):
        odds_ratio_coefficient: float = Field(
            0.1, gt=0, description="weight of the odds-ratio term: the paper's lambda, TRL's beta"
        )
        nll_aggregation: NLLAggregation = Field("sequence_mean", description=NLL_AGGREGATION)

    def coefficients(self) -> tuple[float, float]:
        return self.options.odds_ratio_coefficient, 1.0

    def reward(self, sums: Tensor, means: Tensor) -> Tensor:
        return F.log_odds(means)


class CPO(ReferenceFree):
    """The implicit reward is the log-probability of the response."""

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            gt=0,
            description="scale of the implicit reward: the log-probability of the response",
        )
        nll_coefficient: float = Field(
            1.0, ge=0, description="weight of the NLL term: TRL's cpo_alpha"
        )
        nll_aggregation: NLLAggregation = Field("sequence_sum", description=NLL_AGGREGATION)

        @model_validator(mode="after")
        def _nll_is_used(self) -> CPO.Options:
            return _check_nll(self)

    def reward(self, sums: Tensor, means: Tensor) -> Tensor:
        return self.options.beta * sums


def _check_nll(options: Any) -> Any:
    if "nll_aggregation" in options.model_fields_set and not options.nll_coefficient:
        raise ValueError("'nll_aggregation' has no effect while nll_coefficient is 0")
    return options
