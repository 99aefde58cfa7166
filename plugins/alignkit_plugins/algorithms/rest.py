"""ReST and expert iteration: fine-tune on those of the policy's own samples that score above a
threshold.

ReST (Gulcehre et al. 2023, arXiv:2308.08998, algorithm 1) grows a set of samples once, then
improves on it in several steps, in which the threshold rises and the learning rate falls. Expert
iteration takes one step: it accepts the right answers if the reward is 1 or 0, and those above the
mean of any other reward. Differs from the paper: the loss is averaged over the learned tokens,
whereas the paper divides by the size of the grown set; the minimum is the same. ReST-EM starts
every iteration from the base model; here the policy continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress, pairwise
from typing import Literal

from pydantic import model_validator

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Outputs,
    SelectContext,
    Source,
    StageDefaults,
    per_token,
)
from alignkit import functional as F
from alignkit.algorithm import Phase


class ReST(Algorithm):
    """Grow a set of samples, then learn better and better subsets of it."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=8,
    )

    class Options(Algorithm.Options):
        thresholds: list[float] = Field(
            [0.5, 0.7, 0.9],
            min_length=1,
            description="increasing reward thresholds, one for each improve step",
        )
        scale: Literal["quantile", "absolute"] = Field(
            "quantile",
            description="scale of the thresholds: quantiles of the iteration's samples, or rewards",
        )
        lr_decay: float = Field(
            0.5,
            gt=0,
            le=1,
            description="factor on the learning rate from one improve step to the next",
        )

        @model_validator(mode="after")
        def _rising(self) -> ReST.Options:
            if any(low >= high for low, high in pairwise(self.thresholds)):
                raise ValueError(f"thresholds must increase, got {self.thresholds}")
            if self.scale == "quantile" and not 0 <= self.thresholds[0] <= self.thresholds[-1] < 1:
                raise ValueError(
                    "quantiles must be at least 0 and below 1; for rewards set 'scale: absolute'"
                )
            if len(self.thresholds) == 1 and "lr_decay" in self.model_fields_set:
                raise ValueError("lr_decay needs several improve steps, but there is one threshold")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
        """A phase for each threshold that a sample exceeds; the others are counted as
        `empty_steps`.
        """
        thresholds = self._thresholds(
            [response.reward for group in groups for response in group.responses]
        )
        total, phases = sum(len(group.responses) for group in groups), []
        for step, threshold in enumerate(thresholds):
            above = _above(groups, threshold)
            share = sum(len(group.responses) for group in above) / max(1, total)
            context.log(**{f"threshold/{step + 1}": threshold, f"learned/{step + 1}": share})
            if above:
                phases.append(Phase(above, lr_scale=self.options.lr_decay**step))
        context.log(empty_steps=len(thresholds) - len(phases))
        return phases

    def _thresholds(self, rewards: Sequence[float]) -> list[float]:
        """Thresholds in reward units. Quantiles are of the whole grown set, not of the previous
        step's subset.
        """
        if self.options.scale == "absolute":
            return list(self.options.thresholds)
        import numpy as np

        return [float(x) for x in np.quantile(rewards, self.options.thresholds)]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class ExpertIteration(Algorithm):
    """Learn the samples that a reward accepts."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4,
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=8,
    )

    class Options(Algorithm.Options):
        threshold: float | None = Field(
            None,
            description=(
                "train on samples whose reward is above this; default: the mean of the "
                "iteration's samples"
            ),
        )
        max_per_prompt: int | None = Field(
            None,
            ge=1,
            description=(
                "use at most this many samples of a prompt, so that easy prompts do not dominate"
            ),
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with their accepted samples, the first `max_per_prompt` of each."""
        threshold = self.options.threshold
        # A fixed number would accept all samples or none, depending on the reward's level
        if threshold is None:
            rewards = [response.reward for group in groups for response in group.responses]
            threshold = math.fsum(rewards) / max(1, len(rewards))
        accepted = _above(groups, threshold)
        chosen = [
            replace(group, responses=group.responses[: self.options.max_per_prompt])
            for group in accepted
        ]
        context.log(
            threshold=threshold,
            accepted=sum(len(group.responses) for group in accepted),
            learned=sum(len(group.responses) for group in chosen),
            prompts_without=len(groups) - len(accepted),
        )
        return chosen

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


def _above(groups: Sequence[Group], threshold: float) -> list[Group]:
    """Groups with the responses whose reward is above the threshold by more than rounding, without
    empty groups.
    """
    above = []
    for group in groups:
        above_it = F.preferred([(threshold, response.reward) for response in group.responses])
        responses = tuple(compress(group.responses, above_it))
        if responses:
            above.append(replace(group, responses=responses, pairs=None))
    return above
