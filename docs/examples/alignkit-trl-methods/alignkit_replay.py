"""GRPO with a replay buffer: a prompt whose samples score alike is replaced by an earlier one that
teaches.

As TRL's experimental trainer did, which was removed. The buffer has the `buffer_size` groups with
the largest sum of |advantage| times the rewards' deviation, of this iteration and all earlier ones.
As many as there are groups without spread are drawn from it, with probabilities in proportion to
that sum, without replacement if there are enough.

Differs from TRL: the ratio of a replayed response is to the policy that sampled it, so that it is
clipped if the policy has moved away; TRL's, in its default settings, is to the present policy. The
loss is a mean over responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import alignkit as ak
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class GRPOWithReplay(ak.Algorithm):
    """GRPO in which earlier groups take the place of groups that teach nothing."""

    source = ak.Source.ROLLOUTS
    needs = ak.Needs(old_logprobs=True, reference_logprobs=True, min_samples=2, replay=True)
    defaults = ak.StageDefaults(
        learning_rate=1e-3,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=8,
    )

    class Options(ak.Algorithm.Options):
        buffer_size: int = ak.Field(64, ge=1, description="groups in the buffer")
        kl_coefficient: float = ak.Field(
            0.0, ge=0, description="weight of the KL to the reference: a term of the loss"
        )
        clip_range: float = ak.Field(0.2, gt=0, description="clip range of the policy ratio")

    def select(self, groups: Sequence[ak.Group], context: ak.SelectContext) -> list[ak.Group]:
        """The groups with spread, and one of the buffer for each of the others."""
        new = [group for group in groups if score(group) > 0]
        earlier = [
            group for iteration in context.replay() for group in iteration if score(group) > 0
        ]
        # Of equal scores, the newest stay: `sorted` keeps the order.
        buffer = sorted([*reversed(new), *reversed(earlier)], key=score, reverse=True)[
            : self.options.buffer_size
        ]
        missing = len(groups) - len(new)
        drawn: list[int] = []
        if buffer and missing:
            weights = np.array([score(group) for group in buffer])
            drawn = list(
                context.rng.choice(
                    len(buffer), missing, missing > len(buffer), weights / weights.sum()
                )
            )
        context.log(replayed=len(drawn), buffer=len(buffer))
        return [*new, *(buffer[index] for index in drawn)]

    def loss(self, batch: ak.Batch, out: ak.Outputs) -> ak.Loss:
        rewards = out.logprobs.new_tensor(
            [r.reward for group in batch.groups for r in group.responses]
        )
        advantages = F.grpo_advantages(rewards, batch.group_index)[:, None].expand_as(out.logprobs)
        policy = F.ppo_policy_loss(
            out.logprobs, self._sampled(batch), advantages, self.options.clip_range
        )
        terms = ak.Loss(policy_loss=ak.per_response(F.mean_tokens(policy, batch.mask)))
        if self.options.kl_coefficient:
            k3 = F.kl_k3(out.logprobs, batch.reference_logprobs, batch.mask)
            terms["kl_loss"] = ak.per_response(
                F.mean_tokens(k3, batch.mask), self.options.kl_coefficient
            )
        return terms

    def _sampled(self, batch: ak.Batch) -> Tensor:
        """Log-probabilities of the policy that sampled: [R, T]; the present policy's where it did
        not say.
        """
        old = batch.old_logprobs.clone()
        for row, response in enumerate(r for group in batch.groups for r in group.responses):
            written = int(batch.mask[row].sum())
            # An iteration's own were measured; the sampler's differ from them by rounding.
            if response.logprobs is not None and len(response.logprobs) == written:
                old[row, batch.mask[row]] = old.new_tensor(response.logprobs)
        return old


def score(group: ak.Group) -> float:
    """How much a group teaches: the sum of its |advantages|, times the rewards' deviation; 0
    without spread.
    """
    rewards = np.array([response.reward for response in group.responses])
    if len(rewards) < 2 or F.nearly_equal(float(rewards.max()), float(rewards.min())):
        return 0.0
    deviation = rewards.std(ddof=1)
    return float(np.abs((rewards - rewards.mean()) / (deviation + 1e-4)).sum() * deviation)


@ak.hookimpl
def register(add: ak.Add) -> None:
    add(
        "algorithm",
        "grpo_replay",
        GRPOWithReplay,
        "GRPO, with earlier groups in place of those without spread",
    )
