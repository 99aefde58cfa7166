"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), and other losses on
the same margin.

The margin is h = log pi/pi_ref (better) - log pi/pi_ref (worse). Log-ratios are sums over tokens,
or means for the losses named *_norm. `sigmoid` with label_smoothing is cDPO (Mitchell 2023),
`robust` is Chowdhury et al. 2024 (arXiv:2403.00409), `ipo` is Azar et al. 2023 (arXiv:2310.12036,
eq. 17), and `hinge` is SLiC-HF's (Zhao et al. 2023, arXiv:2305.10425). Differs from the papers:
labels may be soft; a loss is then its expectation over the label. SLiC-HF has no reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

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

LossName = Literal["sigmoid", "sigmoid_norm", "robust", "ipo", "ipo_norm", "hinge"]
SMOOTHED = {"sigmoid", "sigmoid_norm", "robust"}


class DPO(Algorithm):
    """Make the better response of a pair likelier than the worse one, relative to the reference."""

    needs = Needs(reference_logprobs=True, min_samples=2, pairs=True)
    defaults = StageDefaults(
        learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1
    )

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            gt=0,
            description=(
                "scale of the implicit reward: higher keeps the policy closer to the reference"
            ),
        )
        loss: (
            LossName | Annotated[dict[LossName, Annotated[float, Field(gt=0)]], Field(min_length=1)]
        ) = Field(
            "sigmoid",
            description="loss of a pair, or several with weights: {sigmoid: 0.8, ipo: 0.2}",
        )
        label_smoothing: float = Field(
            0.0, ge=0, lt=0.5, description="share of labels assumed to be wrong"
        )
        nll_coefficient: float = Field(
            0.0, ge=0, description="weight of the NLL term: over better responses' tokens"
        )

        @property
        def losses(self) -> dict[LossName, float]:
            """Losses and their weights."""
            return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

        @model_validator(mode="after")
        def _smoothing_is_used(self) -> DPO.Options:
            if self.label_smoothing and not SMOOTHED & self.losses.keys():
                raise ValueError(f"label_smoothing only applies to {', '.join(sorted(SMOOTHED))}")
            if "robust" in self.losses and not self.label_smoothing:
                raise ValueError("`robust` needs the share of flipped labels: set label_smoothing")
            return self

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        rewards = self._rewards(batch, out)
        # Per token, beta log pi/pi_ref; so a margin below is beta h, over sums or over means.
        sums, means = F.sum_tokens(rewards, batch.mask), F.mean_tokens(rewards, batch.mask)  # [R]
        terms: dict[str, Term] = {}
        for name, weight in self.options.losses.items():
            better, worse = batch.pairs.take(means if name.endswith("_norm") else sums)
            margin, p = better - worse, batch.pairs.p
            # A soft label: the expectation, because the other response is better with probability 1
            # - p.
            losses = p * self._pair_loss(name, margin) + (1 - p) * self._pair_loss(name, -margin)
            terms[name] = per_pair(losses, weight)
        if self.options.nll_coefficient:
            terms["nll"] = per_token(-out.logprobs, self.options.nll_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """`nll` counts a response as often as it is the better one of a pair."""
        if not self.options.nll_coefficient:
            return {}
        # [R, T]; a response has weight 0 if it is in no pair, or certainly the worse one.
        return {"nll": batch.weights("token") * batch.pairs.times_better(len(batch.mask))[:, None]}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return batch.pairs.metrics(F.sum_tokens(self._rewards(batch, out), batch.mask))

    def _rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """Implicit rewards of the tokens, beta log pi/pi_ref: [R, T]."""
        return F.implicit_reward(out.logprobs, batch.reference_logprobs, self.options.beta)

    def _pair_loss(self, name: LossName, margin: Tensor) -> Tensor:
        """Loss of pairs whose first response is the better one, for margins beta h: [P] -> [P]."""
        beta, smoothing = self.options.beta, self.options.label_smoothing
        match name.removesuffix("_norm"):
            case "sigmoid":
                return F.preference_loss(margin, smoothing)  # Rafailov et al., eq. 7
            case "robust":
                return F.robust_loss(margin, smoothing)
            case "ipo":
                # IPO's h has no factor beta.
                return F.ipo_loss(margin / beta, beta)
        return F.hinge_loss(margin)
