"""ReST and expert iteration: fine-tune on those of the policy's own samples that scored above a threshold.

ReST (Gulcehre et al. 2023, arXiv:2308.08998, algorithm 1): grow a set of samples once, then improve on it in several
steps whose threshold rises while the learning rate falls. Expert iteration: one step, for rewards that verify. Differs
from the paper: the loss is a mean over the learned tokens, where the paper divides by the size of the grown set, which
has the same minimum; ReST-EM starts every iteration from the base model again, here it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Outputs,
    Phase,
    Register,
    SelectContext,
    StageDefaults,
    hookimpl,
    per_token,
)


class ReST(Algorithm):
    """Grow a set of samples, then learn ever better parts of it."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4, epochs=1, batch_size=16, lr_scheduler_type="linear", samples_per_prompt=8
    )

    class Options(Algorithm.Options):
        thresholds: list[float] = Field([0.5, 0.7, 0.9], min_length=1, description="rising, one for each improve step")
        scale: Literal["quantile", "absolute"] = Field(
            "quantile", description="thresholds are quantiles of all samples of the iteration, or rewards"
        )
        lr_decay: float = Field(0.5, gt=0, le=1, description="learning rate of an improve step over that before it")

        @model_validator(mode="after")
        def _rising(self) -> ReST.Options:
            if any(low >= high for low, high in pairwise(self.thresholds)):
                raise ValueError(f"thresholds must rise, and {self.thresholds} do not")
            if self.scale == "quantile" and not 0 <= self.thresholds[0] <= self.thresholds[-1] < 1:
                raise ValueError("quantiles are from 0 to below 1; rewards are 'scale: absolute'")
            if len(self.thresholds) == 1 and "lr_decay" in self.model_fields_set:
                raise ValueError("lr_decay is between improve steps, and one threshold makes one step")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
        """A phase for each threshold that some sample exceeds; the others are counted (`empty_steps`)."""
        thresholds = self._thresholds([response.reward for group in groups for response in group.responses])
        total, phases = sum(len(group.responses) for group in groups), []
        for step, threshold in enumerate(thresholds):
            kept = _above(groups, threshold)
            share = sum(len(group.responses) for group in kept) / max(1, total)
            context.log(**{f"threshold/{step + 1}": threshold, f"learned/{step + 1}": share})
            if kept:
                phases.append(Phase(kept, lr_scale=self.options.lr_decay**step))
        context.log(empty_steps=len(thresholds) - len(phases))
        return phases

    def _thresholds(self, rewards: Sequence[float]) -> list[float]:
        """In reward units; quantiles are of the whole grown set, not of what the step before kept."""
        if self.options.scale == "absolute":
            return list(self.options.thresholds)
        import numpy as np

        return [float(x) for x in np.quantile(rewards, self.options.thresholds)]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class ExpertIteration(Algorithm):
    """Learn the samples that a verifier accepts."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4, epochs=2, batch_size=16, lr_scheduler_type="linear", samples_per_prompt=8
    )

    class Options(Algorithm.Options):
        threshold: float = Field(0.0, description="samples with a reward above it are learned; equal is not above")
        max_per_prompt: int | None = Field(
            None, ge=1, description="most samples of one prompt, so that easy ones do not prevail"
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with their accepted samples, the first `cap` of each in the order of sampling."""
        accepted = _above(groups, self.options.threshold)
        chosen = [replace(group, responses=group.responses[: self.options.max_per_prompt]) for group in accepted]
        context.log(
            accepted=sum(len(group.responses) for group in accepted),
            learned=sum(len(group.responses) for group in chosen),
            prompts_without=len(groups) - len(accepted),
        )
        return chosen

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


def _above(groups: Sequence[Group], threshold: float) -> list[Group]:
    """Groups with those responses whose reward is above the threshold; without the groups that have none."""
    found = []
    for group in groups:
        kept = tuple(response for response in group.responses if response.reward > threshold)
        if kept:
            found.append(replace(group, responses=kept, pairs=None))
    return found


@hookimpl
def register_algorithms(register: Register) -> None:
    register("rest", ReST, summary="grow a set of samples, then fine-tune on ever better parts of it")
    register("expert_iteration", ExpertIteration, summary="fine-tune on samples with a reward above a threshold")
