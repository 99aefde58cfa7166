"""Online DPO: DPO on pairs of the policy's own samples (Guo et al. 2024, arXiv:2402.04792).

A reward decides which sample of a pair is better; ties give no pair. Differs from the paper: the label comes from a
reward, which may be `rlaif`'s judge, and more than two samples a prompt give the best against the worst, or all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Pair,
    Register,
    SelectContext,
    StageDefaults,
    Term,
    hookimpl,
    per_pair,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class OnlineDPO(Algorithm):
    """Learn preferences between the policy's own samples."""

    source = ROLLOUTS
    needs = Needs(reference_logprobs=True, min_samples=2, pairs=True)
    defaults = StageDefaults(
        learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="linear", samples_per_prompt=4
    )

    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="pull towards the reference, per nat")
        pairs: Literal["best_worst", "all"] = Field(
            "best_worst", description="which of a prompt's samples are compared"
        )
        labels: Literal["score", "bradley_terry", "soft"] = Field(
            "score", description="the better score wins; or with P = sigma(difference): by chance, or as a soft label"
        )
        loss: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="DPO's, IPO's or SLiC's")
        label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="sigmoid: share of labels taken to be wrong")

        @model_validator(mode="after")
        def _smoothing_has_a_use(self) -> OnlineDPO.Options:
            if self.label_smoothing and self.loss != "sigmoid":
                raise ValueError("label_smoothing bears on 'loss: sigmoid' alone")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with pairs; without one (all scores tie) they are left out and counted."""
        found = [group for group in (self._paired(group, context.rng) for group in groups) if group.pairs]
        count = sum(len(group.pairs or ()) for group in found)
        context.log(pairs=count, groups_tied=len(groups) - len(found))
        return found

    def _paired(self, group: Group, rng: Any) -> Group:
        scores = [response.reward for response in group.responses]
        if self.options.pairs == "all":
            compared = list(combinations(range(len(scores)), 2))
            return replace(group, pairs=self._labelled(group, scores, compared, rng))
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        two = replace(group, responses=(group.responses[best], group.responses[worst]))
        return replace(two, pairs=self._labelled(two, [scores[best], scores[worst]], [(0, 1)], rng))

    def _labelled(
        self, group: Group, scores: Sequence[float], compared: Sequence[tuple[int, int]], rng: Any
    ) -> tuple[Pair, ...]:
        pairs = []
        for pair, first in zip(compared, F.preferred([(scores[i], scores[j]) for i, j in compared]), strict=True):
            words = [group.responses[index].tokens for index in pair]
            if first is None or (words[0] is not None and words[0] == words[1]):  # a tie, or the same words
                continue
            better, worse = pair[first], pair[1 - first]
            p = 1 / (1 + math.exp(scores[worse] - scores[better]))  # Bradley-Terry
            if self.options.labels == "bradley_terry" and rng.random() >= p:
                better, worse = worse, better
            pairs.append(Pair(better, worse, p=p if self.options.labels == "soft" else 1.0))
        return tuple(pairs)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        losses, p = self._losses(), batch.pairs.p
        better, worse = batch.pairs.take(_log_ratios(batch, out))
        h = better - worse
        # With P(better) = p < 1 the expectation over the label.
        return Loss(**{self.options.loss: per_pair(p * losses(h) + (1 - p) * losses(-h))})

    def _losses(self) -> Callable[[Tensor], Tensor]:
        """The loss of a pair as a function of h, the difference of its log-ratios in nats."""
        o = self.options
        if o.loss == "ipo":
            return lambda h: F.ipo_loss(h, o.beta)
        if o.loss == "hinge":
            return lambda h: F.hinge_loss(o.beta * h)
        return lambda h: F.preference_loss(o.beta * h, o.label_smoothing)

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        rewards = self.options.beta * _log_ratios(batch, out)
        better, worse = batch.pairs.take(rewards)
        return {
            "accuracy": per_pair(batch.pairs.right(rewards)),
            "implicit_reward/better": per_pair(better),
            "implicit_reward/worse": per_pair(worse),
        }


def _log_ratios(batch: Batch, out: Outputs) -> Tensor:
    """log P(response) / P_ref(response), [R] nats."""
    return F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)


@hookimpl
def register_algorithms(register: Register) -> None:
    register("online_dpo", OnlineDPO, summary="DPO on pairs of the policy's own samples, decided by a reward")
