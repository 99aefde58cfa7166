"""Online DPO: DPO on pairs of the policy's own samples (Guo et al. 2024, arXiv:2402.04792).

A reward decides which sample of a pair is better; tied samples form no pair. Differs from the
paper: any reward can label the pairs, including a judge (`rlaif`). A prompt may have more than two
samples; the best is then paired with the worst, or all samples with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

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
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class OnlineDPO(Algorithm):
    """Make the better of the policy's own samples likelier than the worse, relative to the
    reference.
    """

    source = Source.ROLLOUTS
    needs = Needs(reference_logprobs=True, min_samples=2, pairs=True)
    defaults = StageDefaults(
        learning_rate=2e-4,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            gt=0,
            description=(
                "scale of the implicit reward: higher keeps the policy closer to the reference"
            ),
        )
        pairs: Literal["best_worst", "all"] = Field(
            "best_worst",
            description="samples of a prompt to compare: the best with the worst, or all",
        )
        labels: Literal["score", "bradley_terry", "soft"] = Field(
            "score",
            description=(
                "the higher score wins, or wins with P = sigma(difference): drawn, or as a soft "
                "label"
            ),
        )
        loss: Literal["sigmoid", "ipo", "hinge"] = Field(
            "sigmoid", description="loss of a pair: DPO's, IPO's or SLiC-HF's"
        )
        label_smoothing: float = Field(
            0.0,
            ge=0,
            lt=0.5,
            description="share of labels assumed to be wrong, for `loss: sigmoid`",
        )

        @model_validator(mode="after")
        def _smoothing_is_used(self) -> OnlineDPO.Options:
            if self.label_smoothing and self.loss != "sigmoid":
                raise ValueError("label_smoothing only applies to 'loss: sigmoid'")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with their pairs. Groups without a pair, because all scores tie, are left out and
        counted.
        """
        paired = [
            group for group in (self._paired(group, context.rng) for group in groups) if group.pairs
        ]
        pairs = sum(len(group.pairs or ()) for group in paired)
        context.log(pairs=pairs, groups_tied=len(groups) - len(paired))
        return paired

    def _paired(self, group: Group, rng: Any) -> Group:
        scores = [response.reward for response in group.responses]
        if self.options.pairs == "all":
            compared = list(combinations(range(len(scores)), 2))
            return replace(group, pairs=self._labeled(group, scores, compared, rng))
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        two = replace(group, responses=(group.responses[best], group.responses[worst]))
        return replace(two, pairs=self._labeled(two, [scores[best], scores[worst]], [(0, 1)], rng))

    def _labeled(
        self, group: Group, scores: Sequence[float], compared: Sequence[tuple[int, int]], rng: Any
    ) -> tuple[Pair, ...]:
        """The compared pairs of responses (indices) with their labels; without ties and equal
        responses.
        """
        pairs = []
        winners = F.preferred([(scores[i], scores[j]) for i, j in compared])
        for pair, winner in zip(compared, winners, strict=True):
            first, second = (group.responses[index].tokens for index in pair)
            if winner is not None and (first is None or first != second):
                pairs.append(self._label(scores, pair[winner], pair[1 - winner], rng))
        return tuple(pairs)

    def _label(self, scores: Sequence[float], better: int, worse: int, rng: Any) -> Pair:
        """The pair of two responses, of which `better` has the higher score."""
        p = 1 / (1 + math.exp(scores[worse] - scores[better]))  # Bradley-Terry
        if self.options.labels == "bradley_terry" and rng.random() >= p:
            better, worse = worse, better
        return Pair(better, worse, p=p if self.options.labels == "soft" else 1.0)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        losses, p = self._losses(), batch.pairs.p
        better, worse = batch.pairs.take(_log_ratios(batch, out))
        h = better - worse
        # A soft label: the expectation, because the other response is better with probability 1 -
        # p.
        return Loss(**{self.options.loss: per_pair(p * losses(h) + (1 - p) * losses(-h))})

    def _losses(self) -> Callable[[Tensor], Tensor]:
        """The loss of pairs as a function of h, the difference of their log-ratios in nats: [P] ->
        [P].
        """
        o = self.options
        if o.loss == "ipo":
            return lambda h: F.ipo_loss(h, o.beta)
        if o.loss == "hinge":
            return lambda h: F.hinge_loss(o.beta * h)
        return lambda h: F.preference_loss(o.beta * h, o.label_smoothing)

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return batch.pairs.metrics(self.options.beta * _log_ratios(batch, out))


def _log_ratios(batch: Batch, out: Outputs) -> Tensor:
    """log pi/pi_ref of the responses in nats: [R]."""
    return F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)
