"""SimPO, ORPO and CPO: preference pairs without a reward model and without a reference.

SimPO: Meng et al. 2024, arXiv:2405.14734, eq. (6). ORPO: Hong et al. 2024, arXiv:2403.07691, eqs. (4), (7). CPO: Xu et
al. 2024, arXiv:2401.08417. They differ in how a response is rated and in what its NLL is a mean of.
Differs from the papers: soft labels, for which both terms are expectations over the label.
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

NLL = Literal["token_mean", "sequence_mean", "sequence_sum"]
OF = "NLL of the better response: mean over all tokens, or over pairs of a response's mean or sum"


class ReferenceFree(Algorithm):
    """-log sigma(rating of the better - rating of the worse - margin), and the better one's NLL."""

    needs = Needs(min_samples=2, pairs=True)
    defaults = StageDefaults(learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1)
    margin = 0.0

    def coefficients(self) -> tuple[float, float]:
        """Of the preference and of the NLL."""
        return 1.0, self.options.nll_coefficient

    def rating(self, sums: Tensor, means: Tensor) -> Tensor:
        """Of responses, by the sum and the mean of their tokens' log-probabilities: [R], [R] -> [R]."""
        raise NotImplementedError

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(self._ratings(batch, out))
        p, (coefficient, nll_coefficient) = batch.pairs.p, self.coefficients()
        # The expectation over a soft label: with 1 - p the other one is better.
        losses = p * F.preference_loss(better - worse - self.margin)
        losses = losses + (1 - p) * F.preference_loss(worse - better - self.margin)
        terms = {"preference": per_pair(losses, coefficient)}
        if nll_coefficient:
            terms["nll"] = self._nll(batch, out, nll_coefficient)
        return Loss(**terms)

    def _nll(self, batch: Batch, out: Outputs, coefficient: float) -> Term:
        if self.options.nll_aggregation == "token_mean":
            return per_token(-out.logprobs, coefficient)
        over_tokens = F.mean_tokens if self.options.nll_aggregation == "sequence_mean" else F.sum_tokens
        better, worse = batch.pairs.take(-over_tokens(out.logprobs, batch.mask))
        return per_pair(batch.pairs.p * better + (1 - batch.pairs.p) * worse, coefficient)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """`token_mean` is over better responses; one counts as often as it is the better of a pair."""
        if self.options.nll_aggregation != "token_mean":
            return {}
        return {"nll": batch.mask * batch.pairs.times_better(len(batch.mask))[:, None]}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        ratings = self._ratings(batch, out)
        better, worse = batch.pairs.take(ratings)
        return {
            "accuracy": per_pair(batch.pairs.right(ratings)),
            "rating/better": per_pair(better),
            "rating/worse": per_pair(worse),
        }

    def _ratings(self, batch: Batch, out: Outputs) -> Tensor:
        return self.rating(F.sum_tokens(out.logprobs, batch.mask), F.mean_tokens(out.logprobs, batch.mask))


class SimPO(ReferenceFree):
    """Rated by the mean log-probability of a token; the better one must be ahead by gamma."""

    class Options(Algorithm.Options):
        beta: float = Field(2.0, gt=0, description="scale of the mean log-probability of a token")
        gamma: float = Field(1.0, ge=0, description="the better response must be ahead by so much")
        nll_coefficient: float = Field(0.0, ge=0, description="weight of the NLL (CPO-SimPO)")
        nll_aggregation: NLL = Field("token_mean", description=OF)

        @model_validator(mode="after")
        def _nll_has_a_use(self) -> SimPO.Options:
            return _used(self)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return float(self.options.gamma)

    def rating(self, sums: Tensor, means: Tensor) -> Tensor:
        return self.options.beta * means


class ORPO(ReferenceFree):
    """Rated by the log-odds of the mean token's probability."""

    class Options(Algorithm.Options):
        lam: float = Field(0.1, gt=0, description="weight of the odds ratio; TRL's beta")
        nll_aggregation: NLL = Field("sequence_mean", description=OF)

    def coefficients(self) -> tuple[float, float]:
        return self.options.lam, 1.0

    def rating(self, sums: Tensor, means: Tensor) -> Tensor:
        return F.log_odds(means)


class CPO(ReferenceFree):
    """Rated by the log-probability."""

    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="scale of the log-probability")
        nll_coefficient: float = Field(1.0, ge=0, description="weight of the NLL; TRL's cpo_alpha")
        nll_aggregation: NLL = Field("sequence_sum", description=OF)

        @model_validator(mode="after")
        def _nll_has_a_use(self) -> CPO.Options:
            return _used(self)

    def rating(self, sums: Tensor, means: Tensor) -> Tensor:
        return self.options.beta * sums


def _used(options: Any) -> Any:
    if "nll_aggregation" in options.model_fields_set and not options.nll_coefficient:
        raise ValueError("'nll_aggregation' has no effect while nll_coefficient is 0")
    return options


@hookimpl
def register_algorithms(register: Register) -> None:
    register("simpo", SimPO, summary="preference pairs by mean log-probability and a margin, without a reference")
    register("orpo", ORPO, summary="demonstrations and the odds of better over worse at once, without a reference")
    register("cpo", CPO, summary="preference pairs by log-probability and the better one's NLL, without a reference")
