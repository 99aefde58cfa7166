"""REINFORCE++: PPO without a value role (Hu 2025, arXiv:2501.03262).

A token's return is the score minus beta times the KL from it to the end, whitened over all tokens of the iteration;
updates are clipped as in PPO. REINFORCE++-baseline is `group_baseline`. Differs from the paper: with the group baseline
the KL stays in the reward, where its later versions put k2 into the loss; an iteration in which no return differs is
skipped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    hookimpl,
    per_response,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6  # returns that differ by less, in reward units, are equal


class ReinforcePP(Algorithm):
    """Raise the probability of tokens whose return was above the whole batch's."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-3,  # for LoRA on models of some 100M weights; a tenth of it above a billion
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )
    teaches = True  # whether this iteration has anything to learn from

    class Options(Algorithm.Options):
        kl_beta: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in reward units")
        group_baseline: bool = Field(False, description="take the mean score of the prompt's responses off first")
        whiten: bool = Field(True, description="returns to mean 0 and variance 1 over all tokens of the iteration")
        clip: float = Field(0.2, gt=0, description="policy ratio may move so far in one iteration")
        clip_high: float | None = Field(None, gt=0, description="the same upwards, where it differs")
        aggregation: Literal["token", "sequence"] = Field(
            "token", description="mean over tokens, or over responses of their token means"
        )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """A group's mean takes two."""
        least = 2 if self.options.group_baseline else 1
        return Needs(old_logprobs=True, reference_logprobs=True, min_samples=least)

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages, [R, T]."""
        o, mask, scores = self.options, rollouts.mask, rollouts.rewards
        assert scores is not None and rollouts.old_logprobs is not None and rollouts.reference_logprobs is not None
        if o.group_baseline:
            scores = F.centred_advantages(scores, rollouts.group)
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        returns = F.reinforce_returns(scores, kl, mask, o.kl_beta)
        counted = returns[mask]
        self.metrics = {}
        if len(counted):
            self.metrics = {"return": float(counted.mean()), "return_std": float(counted.std(correction=0))}
        self.teaches = bool((counted - counted[:1]).abs().gt(ROUNDING).any())
        return {"advantages": F.masked_whiten(returns, mask) if o.whiten else returns}

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """All, or none where all returns are equal: the iteration is skipped (`empty_selection`)."""
        return groups if self.teaches else []

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, mask = self.options, batch.mask
        assert out.logprobs is not None and batch.old_logprobs is not None
        policy = F.ppo_policy_loss(out.logprobs, batch.old_logprobs, batch["advantages"], o.clip, o.clip_high or o.clip)
        return Loss(policy=per_token(policy) if o.aggregation == "token" else per_response(F.mean_tokens(policy, mask)))

    def report(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Over counted tokens: share whose gradient the clip removes, KL moved in this iteration (k3), the ratio."""
        assert out.logprobs is not None and batch.old_logprobs is not None
        o, old, mask = self.options, batch.old_logprobs, batch.mask
        clipped = F.clipped(out.logprobs, old, batch["advantages"], o.clip, o.clip_high or o.clip, mask)
        return {
            "clip_fraction": per_token(clipped),
            "moved": per_token(F.kl_k3(old, out.logprobs, mask)),
            "ratio": per_token(F.ratio(out.logprobs, old, mask)),
        }


@hookimpl
def register_algorithms(register):  # type: ignore[no-untyped-def]
    register("reinforce_pp", ReinforcePP, summary="REINFORCE++: clipped updates with returns whitened over the batch")
