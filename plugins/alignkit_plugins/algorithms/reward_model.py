"""Reward models: a scalar head learns which response people prefer, or how they rate single
answers.

`reward_model` learns pairs and rankings: all pairs of a ranking share a weight of 1, and each
response runs through the model once. Differs from the papers: tied responses form no pair.

Ratings, such as 1 to 7: `reward_regression` predicts the rating, normalized with mean and standard
deviation of the training data, by least squares. `reward_ordinal` only uses the order of the
levels: an ordered logit, whose thresholds are those of the training data's shares, or are learned.
Differs from HelpSteer2: ratings are normalized, and there is one per answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    Trains,
    per_pair,
    per_response,
)
from alignkit import functional as F
from alignkit.data.group import resolved_pairs, responses_of, with_responses

if TYPE_CHECKING:
    from torch import Tensor

FEW = 50  # pairs, from which nothing general is learned
MAX_LEVELS = 20
GAP = 1e-3  # smallest distance between thresholds
# One epoch: InstructGPT found that more overfit.
DEFAULTS = StageDefaults(
    learning_rate=5e-4,
    epochs=1,
    batch_size=16,
    lr_scheduler_type="cosine",
    warmup_ratio=0.05,
)


class RewardModel(Algorithm):
    """Score the better response of a pair higher than the worse.

    Pairs: Bradley-Terry (Stiennon et al. 2020, arXiv:2009.01325, section 3.4). Rankings:
    InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 1). Margins: Llama 2 (Touvron et al.
    2023, arXiv:2307.09288, eq. 2 and table 27). Centering: Eisenstein et al. 2023
    (arXiv:2312.09244).
    """

    trains = Trains.REWARD
    needs = Needs(min_samples=2, pairs=True)
    defaults = DEFAULTS

    class Options(Algorithm.Options):
        margin: Literal["none", "llama2-small", "llama2-large", "data"] = Field(
            "none",
            "margin of a pair: from Llama 2's table by its level, or the number in the data",
        )
        center_coefficient: float = Field(
            0.01, "weight of the term that centers scores around 0", ge=0
        )

    @property
    def log_odds(self) -> bool:
        """True without margins, which pull the scores of a pair further apart than its log-odds."""
        return self.options.margin == "none"

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raise DataError if no pair has the kind of margin that the options ask for; count the
        pairs that lack it.

        Warn of too few pairs.
        """
        if context.validation:
            return groups
        kind = self.options.margin
        wanted: Any = str
        expected = "the name of a level"
        if kind == "data":
            wanted, expected = (int, float), "a number"
        pairs = missing = 0
        for group in groups:
            for pair in resolved_pairs(group):
                pairs += 1
                missing += not isinstance(pair.margin, wanted)
        if pairs < FEW:
            context.say(
                f"warning: {pairs} pairs are too few for a reward model; expected {FEW} or more"
            )
        if kind != "none":
            if missing == pairs:
                raise DataError(
                    f"'margin: {kind}' needs pairs whose margin is {expected}, but no pair has one"
                )
            context.log(pairs_without_margin=missing)
        return groups

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        weights = F.kwise_weights(batch.pairs.group_index) * batch.weights("pair")
        return {"rank": weights, "center": weights}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(out.scores)
        rank = F.pairwise_loss(better, worse, margin=self._margins(batch), p=batch.pairs.p)
        center = F.centering_loss(better, worse)
        return Loss(rank=per_pair(rank), center=per_pair(center, self.options.center_coefficient))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """`accuracy/LEVEL` is over the pairs whose margin is that level."""
        right, levels = batch.pairs.right(out.scores), batch.pairs.levels
        metrics = batch.pairs.metrics(out.scores)
        for level in sorted({level for level in levels if level is not None}):
            others = right.new_tensor([other != level for other in levels]).bool()
            metrics[f"accuracy/{level}"] = per_pair(right.masked_fill(others, float("nan")))
        return metrics

    def _margins(self, batch: Batch) -> Tensor:
        """Margins of the pairs: [P]; with Llama 2's table 0, the lowest, for a pair without a
        level.
        """
        kind, pairs = self.options.margin, batch.pairs
        if kind == "data":
            return pairs.margin
        margins = pairs.margin.new_zeros(len(pairs))
        if kind != "none":
            for place, level in enumerate(pairs.levels):
                if level is not None:
                    name = level if level in ("better", "unsure") else f"{level}_better"
                    margins[place] = F.llama2_margin(name, kind.removeprefix("llama2-"))
        return margins


class FromRatings(Algorithm):
    """What the models of single ratings have in common: a response without one is counted and left
    out.
    """

    trains = Trains.REWARD
    defaults = DEFAULTS

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Responses with a rating. Raises DataError if there is none, or no difference between
        them.
        """
        kept, lacking, total = [], [], 0
        for group in groups:
            rated = [r for r in group.responses if r.scores.get("reward") is not None]
            total += max(1, len(group.responses))
            if rated:
                kept.append(with_responses(group, rated, pairs=()))
            if len(rated) < max(1, len(group.responses)):
                lacking.append(group)
        if not context.validation:
            context.left_out("without_score", total - len(responses_of(kept)), lacking)
            # What is not learned has no part in the scale, either.
            learned = [group for group in kept if group.weight]
            ratings = _ratings(learned)
            if not ratings or F.nearly_equal(max(ratings), min(ratings)):
                found = sorted(set(ratings))
                raise DataError(
                    f"a reward model needs answers with different scores, but found {found}"
                )
            self.learn_scale(learned, context)
        return kept

    def learn_scale(self, groups: Sequence[Group], context: SelectContext) -> None:
        """Keep in `state` what the loss needs to know of the training data's ratings."""
        raise NotImplementedError

    def expected(self, scores: Tensor) -> Tensor:
        """Expected ratings of responses with these scores of the model: [R] -> [R]."""
        raise NotImplementedError

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Mean absolute error of the expected rating, in the data's units."""
        errors = self.expected(out.scores) - _targets(batch)
        return {"absolute_error": per_response(errors.abs())}


class RewardRegression(FromRatings):
    """Predict the normalized rating of a response by least squares (HelpSteer2, Wang et al. 2024,
    arXiv:2406.08673, section 3).
    """

    def learn_scale(self, groups: Sequence[Group], context: SelectContext) -> None:
        mean = _mean(groups, float)
        variance = _mean(groups, lambda rating: (rating - mean) ** 2)
        self.state = {"score_mean": mean, "score_std": math.sqrt(variance)}
        context.log(**self.state)

    def expected(self, scores: Tensor) -> Tensor:
        return scores * self.state["score_std"] + self.state["score_mean"]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        target = (_targets(batch) - self.state["score_mean"]) / self.state["score_std"]
        return Loss(squared_error=per_response((out.scores - target) ** 2))


class RewardOrdinal(FromRatings):
    """Predict how likely each level is: P(rating <= level k) = sigma(threshold k - score)
    (McCullagh 1980).
    """

    class Options(Algorithm.Options):
        threshold_rate: float = Field(
            0.0,
            "learning rate of the thresholds, per step; 0: they stay those of the data's shares",
            ge=0,
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Raises DataError for held-out ratings that are no level, before training and not at its
        first evaluation.
        """
        kept = super().select(groups, context)
        self._levels([group for group in kept if group.weight])
        return kept

    def learn_scale(self, groups: Sequence[Group], context: SelectContext) -> None:
        levels = sorted(set(_ratings(groups)))
        if len(levels) > MAX_LEVELS:
            raise DataError(
                f"{len(levels)} different scores are no levels (at most {MAX_LEVELS}): use "
                "reward_regression"
            )
        thresholds = []
        for level in levels[:-1]:
            share = _mean(groups, level.__ge__)
            thresholds.append(math.log(share / (1 - share)))
        self.state = {"levels": levels, "thresholds": thresholds, "next": thresholds}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Adds the thresholds: a score at which a rating is as likely above as at the level or
        below.
        """
        metrics = dict(super().report_metrics(batch, out))
        for level, threshold in zip(self.state["levels"], self.state["thresholds"], strict=False):
            values = out.scores.new_full(out.scores.shape, threshold)
            metrics[f"threshold/{level:g}"] = per_response(values)
        return metrics

    def expected(self, scores: Tensor) -> Tensor:
        p = F.ordinal_probabilities(scores, scores.new_tensor(self.state["thresholds"]))
        return p @ p.new_tensor(self.state["levels"])

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        thresholds = out.scores.new_tensor(self.state["thresholds"])
        return Loss(ordinal=per_response(self.losses(batch, out.scores, thresholds)))

    def losses(self, batch: Batch, scores: Tensor, thresholds: Tensor) -> Tensor:
        """-log P of the ratings: [R]."""
        levels = batch.group_index.new_tensor(self._levels(batch.groups))
        return F.ordinal_loss(scores, levels, thresholds)

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """Thresholds that earlier steps learned, so that held-out data never move those of their
        own evaluation.
        """
        if not self.options.threshold_rate:
            return {}
        import torch

        thresholds = out.scores.new_tensor(self.state["next"], dtype=torch.float64)
        thresholds.requires_grad_()
        with torch.enable_grad():
            losses = self.losses(batch, out.scores.detach().to(thresholds), thresholds)
            weights = batch.weights("response")
            mean = (losses * weights).sum() / weights.sum()
            (gradient,) = torch.autograd.grad(mean, thresholds)
        moved = (thresholds.detach() - self.options.threshold_rate * gradient).tolist()
        for k in range(1, len(moved)):
            moved[k] = max(moved[k], moved[k - 1] + GAP)
        return {"thresholds": self.state["next"], "next": moved}

    def _levels(self, groups: Sequence[Group]) -> list[int]:
        """Places of the ratings among the levels."""
        levels, ratings = self.state["levels"], _ratings(groups)
        unknown = set(ratings) - set(levels)
        if unknown:
            raise DataError(
                f"score {min(unknown):g} is not among the levels of the training data: {levels}"
            )
        return list(map(levels.index, ratings))


def _ratings(groups: Sequence[Group]) -> list[float]:
    return [float(response.scores["reward"]) for response in responses_of(groups)]  # type: ignore[arg-type]


def _mean(groups: Sequence[Group], value: Callable[[float], float]) -> float:
    """The mean of a value of each rating, by the weights of the rows."""
    terms = [group.weight * value(rating) for group in groups for rating in _ratings([group])]
    return math.fsum(terms) / math.fsum(group.weight * len(group.responses) for group in groups)


def _targets(batch: Batch) -> Tensor:
    """The ratings in the data: [R]."""
    return batch.pairs.p.new_tensor(_ratings(batch.groups))
