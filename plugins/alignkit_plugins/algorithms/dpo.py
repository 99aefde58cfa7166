"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), and other
losses on the same margin; and online DPO, which pairs the policy's own samples.

The margin is h = log pi/pi_ref (better) - log pi/pi_ref (worse). Log-ratios are sums over tokens,
or means for the losses named *_norm. `sigmoid` with label_smoothing is cDPO (Mitchell 2023),
`robust` is Chowdhury et al. 2024 (arXiv:2403.00409), `ipo` is Azar et al. 2023 (arXiv:2310.12036,
eq. 17), and `hinge` is SLiC-HF's (Zhao et al. 2023, arXiv:2305.10425).
Differs from the papers: labels may be soft; a loss is then its expectation over the label. SLiC-HF
has no reference. Any reward can label the pairs of online DPO, including a judge (`rlaif`); tied
samples form no pair. A prompt may have more than two samples; the best is then paired with the
worst, or all samples with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Pair,
    SelectContext,
    Source,
    StageDefaults,
    Term,
    per_pair,
    per_token,
)
from alignkit import functional as F
from alignkit.data.group import with_responses

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["sigmoid", "sigmoid_norm", "robust", "ipo", "ipo_norm", "hinge"]
SMOOTHED = {"sigmoid", "sigmoid_norm", "robust"}


class Pairwise(Algorithm):
    """What methods that learn from pairs have in common."""

    defaults = StageDefaults(
        learning_rate=5e-5,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
    )

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """Implicit rewards of the responses: [R]."""
        raise NotImplementedError

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return batch.pairs.metrics(self.rewards(batch, out))


def over_label(batch: Batch, loss: Callable[[Tensor], Tensor], margin: Tensor) -> Tensor:
    """The expectation of a loss over soft labels, because the other response is better with
    probability 1 - p: [P] -> [P].
    """
    p = batch.pairs.p
    return p * loss(margin) + (1 - p) * loss(-margin)


def better_tokens(batch: Batch) -> Tensor:
    """Weights of the tokens, in which a response counts as often as it is the better one of a pair:
    [R, T]; 0 if it is in no pair, or certainly the worse one.
    """
    return batch.weights("token") * batch.pairs.times_better(len(batch.mask))[:, None]


class DPO(Pairwise):
    """Make the better response of a pair likelier than the worse one, relative to the reference."""

    needs = Needs(reference_logprobs=True, min_samples=2, pairs=True)

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            "scale of the implicit reward: higher keeps the policy closer to the reference",
            gt=0,
        )
        loss: (
            LossName | Annotated[dict[LossName, Annotated[float, Field(gt=0)]], Field(min_length=1)]
        ) = Field("sigmoid", "loss of a pair, or several with weights: {sigmoid: 0.8, ipo: 0.2}")
        label_smoothing: float = Field(0.0, "share of labels assumed to be wrong", ge=0, lt=0.5)
        nll_coefficient: float = Field(
            0.0, "weight of the NLL term: over better responses' tokens", ge=0
        )

        @property
        def losses(self) -> dict[LossName, float]:
            """Losses and their weights."""
            return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

        def check_values(self) -> None:
            if self.label_smoothing and not SMOOTHED & self.losses.keys():
                raise ValueError(f"label_smoothing only applies to {', '.join(sorted(SMOOTHED))}")
            if "robust" in self.losses and not self.label_smoothing:
                raise ValueError("`robust` needs the share of flipped labels: set label_smoothing")

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        rewards = self.token_rewards(batch, out)
        # A margin below is a difference of these, over sums or over means.
        sums, means = F.sum_tokens(rewards, batch.mask), F.mean_tokens(rewards, batch.mask)  # [R]
        terms: dict[str, Term] = {}
        for name, weight in self.options.losses.items():
            better, worse = batch.pairs.take(means if name.endswith("_norm") else sums)
            losses = over_label(batch, partial(self.pair_loss, name), better - worse)
            terms[name] = per_pair(losses, weight)
        if self.options.nll_coefficient:
            terms["nll"] = per_token(-out.logprobs, self.options.nll_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"nll": better_tokens(batch)} if self.options.nll_coefficient else {}

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return F.sum_tokens(self.token_rewards(batch, out), batch.mask)

    def token_rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """beta log pi/pi_ref of the tokens: [R, T]."""
        return F.implicit_reward(out.logprobs, batch.reference_logprobs, self.options.beta)

    def pair_loss(self, name: LossName, margin: Tensor) -> Tensor:
        """Loss of pairs whose first response is the better one, for margins beta h: [P] -> [P]."""
        beta, smoothing = self.options.beta, self.options.label_smoothing
        match name.removesuffix("_norm"):
            case "sigmoid":
                return F.preference_loss(margin, smoothing)  # Rafailov et al., eq. 7
            case "robust":
                return F.robust_loss(margin, smoothing)
            case "ipo":
                return F.ipo_loss(margin / beta, beta)  # its h has no factor beta
        return F.hinge_loss(margin)


class OnlineDPO(DPO):
    """Make the better of the policy's own samples likelier than the worse, relative to the
    reference (Guo et al. 2024, arXiv:2402.04792).
    """

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=2e-4,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(DPO.Options):
        pairs: Literal["best_worst", "all"] = Field(
            "best_worst", "samples of a prompt to compare: the best with the worst, or all"
        )
        labels: Literal["score", "bradley_terry", "soft"] = Field(
            "score",
            (
                "the higher score wins, or wins with P = sigma(difference): drawn, or as a "
                "soft label"
            ),
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with their pairs. Groups without a pair, because all scores tie, are left out and
        counted.
        """
        paired, pairs = [], 0
        for group in groups:
            group = self._paired(group, context.rng)
            if group.pairs:
                paired.append(group)
                pairs += len(group.pairs)
        context.log(pairs=pairs, groups_tied=len(groups) - len(paired))
        return paired

    def _paired(self, group: Group, rng: Any) -> Group:
        """The group with the compared pairs, without ties and equal responses."""
        if self.options.pairs == "best_worst":
            scores = [response.reward for response in group.responses]
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            group = with_responses(group, (group.responses[best], group.responses[worst]))
        pairs = []
        for one, other in combinations(range(len(group.responses)), 2):
            first, second = group.responses[one], group.responses[other]
            (winner,) = F.preferred([(first.reward, second.reward)])
            if winner is not None and (first.tokens is None or first.tokens != second.tokens):
                better, worse = (other, one) if winner else (one, other)
                pairs.append(self._label(group, better, worse, rng))
        return replace(group, pairs=tuple(pairs))

    def _label(self, group: Group, better: int, worse: int, rng: Any) -> Pair:
        """The pair of two responses, of which `better` has the higher score."""
        difference = group.responses[worse].reward - group.responses[better].reward
        p = 1 / (1 + math.exp(difference))  # Bradley-Terry
        if self.options.labels == "bradley_terry" and rng.random() >= p:
            better, worse = worse, better
        return Pair(better, worse, p=p if self.options.labels == "soft" else 1.0)

    def token_rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """log pi/pi_ref of the tokens, without beta: [R, T]."""
        return out.logprobs - batch.reference_logprobs

    def rewards(self, batch: Batch, out: Outputs) -> Tensor:
        return self.options.beta * super().rewards(batch, out)

    def pair_loss(self, name: LossName, margin: Tensor) -> Tensor:
        if name.startswith("ipo"):
            return F.ipo_loss(margin, self.options.beta)
        return super().pair_loss(name, self.options.beta * margin)
