"""Rejection sampling, expert iteration and ReST: fine-tune on the better ones of the policy's own
samples.

Rejection sampling learns the best of K samples by reward. Llama 2 found that a policy forgets if it
learns from the samples of the last iteration only. So later iterations replay the best samples of
earlier prompts; a prompt keeps its sample until a better one is drawn. The replayed prompts are
redrawn in every iteration, because the same few samples would be memorized.
Differs from Llama 2: every model samples for itself, not for smaller ones. `pool: batch` is RAFT's
global variant: the best 1/K of all samples, so that a prompt may have several or none. It replays
none.

ReST grows a set of samples once, then improves on it in several steps, in which the threshold rises
and the learning rate falls. Expert iteration takes one step: it accepts the right answers if the
reward is 1 or 0, and those above the mean of any other reward.
Differs from the paper: the loss is averaged over the learned tokens, whereas the paper divides by
the size of the grown set; the minimum is the same. ReST-EM starts every iteration from the base
model; here the policy continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from alignkit import (
    Algorithm,
    Field,
    Group,
    Needs,
    Response,
    SelectContext,
    Source,
    StageDefaults,
)
from alignkit import functional as F
from alignkit.contract.algorithm import Phase
from alignkit.data.group import responses_of, with_responses
from alignkit_plugins.algorithms.sft import Likelihood


class OwnSamples(Likelihood):
    """Supervised learning of some of the policy's samples, which a subclass selects."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4,
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=8,
    )


@dataclass(frozen=True)
class Best:
    """The best sample of a prompt. Iterations count from 0."""

    group: Group
    response: Response
    iteration: int


class RejectionSampling(OwnSamples):
    """Sample K responses, keep the best, and learn it as a demonstration (Llama 2, Touvron et al.
    2023, arXiv:2307.09288, section 3.2.3; RAFT, Dong et al. 2023, arXiv:2304.06767).
    """

    defaults = replace(OwnSamples.defaults, learning_rate=2e-4, samples_per_prompt=4)

    class Options(Algorithm.Options):
        replay_ratio: float = Field(
            0.5, "replayed samples of earlier iterations per new sample", ge=0
        )
        pool: Literal["prompt", "batch"] = Field(
            "prompt",
            "train on the best of each prompt's K samples, or on the best 1/K of all (RAFT)",
        )

        def check_values(self) -> None:
            is_set = "replay_ratio" in self.model_fields_set and self.replay_ratio
            if self.pool == "batch" and is_set:
                raise ValueError("'pool: batch' replays nothing: leave replay_ratio out")

        @property
        def replays(self) -> bool:
            """Whether samples of earlier iterations may be learned again."""
            return self.pool == "prompt" and self.replay_ratio > 0

    @property
    def needs(self) -> Needs:
        """A choice needs two samples."""
        return Needs(min_samples=2, replay=self.options.replays)

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The best samples, each in a group of its own or with others of its prompt; none if all
        rewards are equal.
        """
        tied = [group for group in groups if _tied([group])]
        context.log(groups_tied=len(tied))
        if _tied(groups):
            return []
        if self.options.pool == "batch":
            chosen = _best_of_all(groups)
        else:
            chosen = self._best_of_prompts(groups, context)
        learned = _rewards(chosen)
        replayed = [group for group in chosen if group.meta.get("replayed")]
        context.log(best_reward=sum(learned) / max(1, len(learned)), replayed=len(replayed))
        return chosen

    def _best_of_prompts(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The best sample of each prompt of this iteration, then replayed ones of other prompts."""
        earlier = context.replay() if self.options.replays else []
        best = best_samples([*earlier, groups])
        new = list(dict.fromkeys(map(_key, groups)))
        old = sorted(best.keys() - set(new))
        count = int(self.options.replay_ratio * len(new))
        drawn = [old[place] for place in context.rng.permutation(len(old))[:count]]
        chosen = []
        for key in new + drawn:
            group, meta = best[key].group, best[key].group.meta
            if best[key].iteration < len(earlier):
                meta = {**meta, "replayed": True}
            response = best[key].response
            chosen.append(with_responses(group, (response,), pairs=None, meta=meta))
        return chosen


def best_samples(iterations: Sequence[Sequence[Group]]) -> dict[str, Best]:
    """The best sample of each prompt over all iterations; of equal rewards, the first.

    Prompts with the same words and different columns are different prompts.
    """
    best: dict[str, Best] = {}
    for iteration, groups in enumerate(iterations):
        for group in groups:
            key = _key(group)
            for response in group.responses:
                if key not in best or _above(response, best[key].response.reward):
                    best[key] = Best(group, response, iteration)
    return best


def _key(group: Group) -> str:
    """The prompt as text, and its id, which tells rows with other columns apart. Several groups may
    share it.
    """
    turns = [f"{message['role']}\x1e{message['content']}" for message in group.prompt]
    return "\x1f".join([group.id, *turns])


def _best_of_all(groups: Sequence[Group]) -> list[Group]:
    """The best samples of all prompts together, as many as there are prompts."""
    import torch

    rewards = torch.tensor(_rewards(groups), dtype=torch.float64)
    top = F.raft_top(rewards, count=len(groups)).tolist()
    chosen, start = [], 0
    for group in groups:
        responses = [r for place, r in enumerate(group.responses, start) if place in top]
        start += len(group.responses)
        if responses:
            chosen.append(with_responses(group, responses, pairs=None))
    return chosen


class ReST(OwnSamples):
    """Grow a set of samples, then learn better and better subsets of it (Gulcehre et al. 2023,
    arXiv:2308.08998, algorithm 1).
    """

    defaults = replace(OwnSamples.defaults, epochs=1)

    class Options(Algorithm.Options):
        thresholds: list[float] = Field(
            [0.5, 0.7, 0.9], "increasing reward thresholds, one for each improve step", min_length=1
        )
        scale: Literal["quantile", "absolute"] = Field(
            "quantile", "scale of the thresholds: quantiles of the iteration's samples, or rewards"
        )
        lr_decay: float = Field(
            0.5, "factor on the learning rate from one improve step to the next", gt=0, le=1
        )

        def check_values(self) -> None:
            if any(low >= high for low, high in pairwise(self.thresholds)):
                raise ValueError(f"thresholds must increase, got {self.thresholds}")
            if self.scale == "quantile" and not 0 <= self.thresholds[0] <= self.thresholds[-1] < 1:
                raise ValueError(
                    "quantiles must be at least 0 and below 1; for rewards set 'scale: absolute'"
                )
            if len(self.thresholds) == 1 and "lr_decay" in self.model_fields_set:
                raise ValueError("lr_decay needs several improve steps, but there is one threshold")

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
        """A phase for each threshold that a sample exceeds; the others are counted as
        `empty_steps`.
        """
        rewards = _rewards(groups)
        thresholds, phases = self._thresholds(rewards), []
        for step, threshold in enumerate(thresholds):
            above = _all_above(groups, threshold)
            share = len(_rewards(above)) / max(1, len(rewards))
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

        quantiles: list[float] = np.quantile(rewards, self.options.thresholds).tolist()
        return quantiles


class ExpertIteration(OwnSamples):
    """Learn the samples that a reward accepts (Anthony et al. 2017, arXiv:1705.08439)."""

    class Options(Algorithm.Options):
        threshold: float | None = Field(
            None,
            (
                "train on samples whose reward is above this; default: the mean of the "
                "iteration's samples"
            ),
        )
        max_per_prompt: int | None = Field(
            None,
            "use at most this many samples of a prompt, so that easy prompts do not dominate",
            ge=1,
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups with their accepted samples, the first `max_per_prompt` of each."""
        threshold = self.options.threshold
        if threshold is None:
            # A fixed number would accept all samples or none, depending on the reward's level.
            rewards = _rewards(groups)
            threshold = math.fsum(rewards) / max(1, len(rewards))
        accepted, chosen = _all_above(groups, threshold), []
        for group in accepted:
            first = group.responses[: self.options.max_per_prompt]
            chosen.append(with_responses(group, first))
        context.log(
            threshold=threshold,
            accepted=len(_rewards(accepted)),
            learned=len(_rewards(chosen)),
            prompts_without=len(groups) - len(accepted),
        )
        return chosen


def _rewards(groups: Sequence[Group]) -> list[float]:
    return [response.reward for response in responses_of(groups)]


def _tied(groups: Sequence[Group]) -> bool:
    rewards = _rewards(groups)
    return bool(rewards) and F.nearly_equal(max(rewards), min(rewards))


def _above(response: Response, threshold: float) -> bool:
    """Whether a reward exceeds a number by more than rounding."""
    return F.preferred([(threshold, response.reward)]) == [1]


def _all_above(groups: Sequence[Group], threshold: float) -> list[Group]:
    """Groups with the responses whose reward is above the threshold, without empty groups."""
    above = []
    for group in groups:
        responses = tuple(r for r in group.responses if _above(r, threshold))
        if responses:
            above.append(with_responses(group, responses, pairs=None))
    return above
