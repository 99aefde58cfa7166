"""Reward models from scores of single answers, such as 1 to 7, as labeling pages collect them.

`reward_regression` predicts the score, normalized with mean and standard deviation of the training
data, by least squares (HelpSteer2, Wang et al. 2024, arXiv:2406.08673, section 3). `reward_ordinal`
only uses the order of the levels: an ordered logit (McCullagh 1980), whose thresholds are those of
the training data's shares, or are learned. Differs from HelpSteer2: scores are normalized, and
there is one score per answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    Trains,
    per_response,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor

MAX_LEVELS = 20
GAP = 1e-3  # smallest distance between thresholds


class _FromScores(Algorithm):
    """What both have in common: every response needs a score, and those without one are counted and
    left out.
    """

    trains = Trains.REWARD
    defaults = StageDefaults(
        learning_rate=5e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Responses with a score. Raises DataError if there is none, or no difference between
        them.
        """
        kept = [replace(g, responses=scored, pairs=()) for g in groups if (scored := _scored(g))]
        scores = [score for group in kept for score in _scores(group)]
        if not context.validation:
            lacking = [
                group for group in groups if len(_scored(group)) < max(1, len(group.responses))
            ]
            context.left_out(
                "without_score",
                sum(max(1, len(g.responses)) for g in groups) - len(scores),
                lacking,
            )
            if not scores or F.nearly_equal(max(scores), min(scores)):
                raise DataError(
                    "a reward model needs answers with different scores, but found "
                    f"{sorted(set(scores))}"
                )
            self.state = self.measured(scores)
            context.log(
                **{name: value for name, value in self.state.items() if isinstance(value, float)}
            )
        return kept

    def measured(self, scores: Sequence[float]) -> dict[str, Any]:
        """What the loss needs to know of the training data's scores."""
        raise NotImplementedError

    def expected(self, scores: Tensor) -> Tensor:
        """Expected ratings of responses with these scores of the model: [R] -> [R]."""
        raise NotImplementedError

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Mean absolute error of the expected rating, in the data's units."""
        return {"absolute_error": per_response((self.expected(out.scores) - _given(batch)).abs())}


class RewardRegression(_FromScores):
    """Predict the normalized score of a response by least squares."""

    def measured(self, scores: Sequence[float]) -> dict[str, Any]:
        mean = math.fsum(scores) / len(scores)
        return {
            "score_mean": mean,
            "score_std": math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / len(scores)),
        }

    def expected(self, scores: Tensor) -> Tensor:
        return scores * self.state["score_std"] + self.state["score_mean"]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        target = (_given(batch) - self.state["score_mean"]) / self.state["score_std"]
        return Loss(squared_error=per_response((out.scores - target) ** 2))


class RewardOrdinal(_FromScores):
    """Predict how likely each level is: P(rating <= level k) = sigma(threshold k - score)."""

    class Options(Algorithm.Options):
        threshold_rate: float = Field(
            0.0,
            ge=0,
            description=(
                "learning rate of the thresholds, per step; 0: they stay those of the data's shares"
            ),
        )

    @classmethod
    def specialize(cls, options: Any) -> type[Algorithm]:
        """Fixed thresholds need no pass of their own over each batch."""
        return (
            LearnedThresholds
            if isinstance(options, Mapping) and options.get("threshold_rate")
            else cls
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Raises DataError for held-out scores that are no level, before training and not at its
        first evaluation.
        """
        kept = super().select(groups, context)
        self._check(kept)
        return kept

    def measured(self, scores: Sequence[float]) -> dict[str, Any]:
        levels = sorted(set(scores))
        if len(levels) > MAX_LEVELS:
            raise DataError(
                f"{len(levels)} different scores are no levels (at most {MAX_LEVELS}): use "
                "reward_regression"
            )
        shares = [sum(score <= level for score in scores) / len(scores) for level in levels[:-1]]
        thresholds = [math.log(share / (1 - share)) for share in shares]
        return {"levels": levels, "thresholds": thresholds, "next": thresholds}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Also the thresholds: a score at which a rating is as likely above as at the level or
        below.
        """
        pairs = zip(self.state["levels"][:-1], self.state["thresholds"], strict=True)
        thresholds = {
            f"threshold/{level:g}": out.scores.new_full(out.scores.shape, value)
            for level, value in pairs
        }
        own = {name: per_response(values) for name, values in thresholds.items()}
        return {**super().report_metrics(batch, out), **own}

    def expected(self, scores: Tensor) -> Tensor:
        p = F.ordinal_probabilities(scores, scores.new_tensor(self.state["thresholds"]))
        return p @ p.new_tensor(self.state["levels"])

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        thresholds = out.scores.new_tensor(self.state["thresholds"])
        return Loss(
            ordinal=per_response(F.ordinal_loss(out.scores, self._levels(batch), thresholds))
        )

    def _levels(self, batch: Batch) -> Tensor:
        """Places of the scores among the levels: [R] int64."""
        self._check(batch.groups)
        levels = self.state["levels"]
        places = [levels.index(score) for group in batch.groups for score in _scores(group)]
        return batch.group_index.new_tensor(places)

    def _check(self, groups: Sequence[Group]) -> None:
        levels = self.state["levels"]
        if unknown := {score for group in groups for score in _scores(group)} - set(levels):
            raise DataError(
                f"score {min(unknown):g} is not among the levels of the training data: {levels}"
            )


class LearnedThresholds(RewardOrdinal):
    """With thresholds that move down their gradient, too."""

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """Thresholds that earlier steps learned, so that held-out data never move those of their
        own evaluation.
        """
        import torch

        thresholds = out.scores.new_tensor(self.state["next"], dtype=torch.float64).requires_grad_()
        with torch.enable_grad():
            losses = F.ordinal_loss(
                out.scores.detach().to(thresholds), self._levels(batch), thresholds
            )
            (gradient,) = torch.autograd.grad(losses[batch.mask.any(dim=1)].mean(), thresholds)
        moved = (thresholds.detach() - self.options.threshold_rate * gradient).tolist()
        for k in range(1, len(moved)):
            moved[k] = max(moved[k], moved[k - 1] + GAP)
        return {"thresholds": self.state["next"], "next": moved}


def _scored(group: Group) -> tuple[Any, ...]:
    return tuple(
        response for response in group.responses if response.scores.get("reward") is not None
    )


def _scores(group: Group) -> list[float]:
    return [float(response.scores["reward"]) for response in _scored(group)]


def _given(batch: Batch) -> Tensor:
    """The scores in the data: [R]."""
    return batch.pairs.p.new_tensor([score for group in batch.groups for score in _scores(group)])
