"""REINFORCE++: PPO without a value role (Hu 2025, arXiv:2501.03262).

A token's return is the score minus beta times the KL from it to the end, whitened over all tokens of the iteration;
updates are clipped as in PPO. REINFORCE++-baseline is `group_baseline`. Differs from the paper: with the group baseline
the KL stays in the reward, where its later versions put k2 into the loss; an iteration in which no return differs is
skipped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    Register,
    Skip,
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

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in reward units")
        group_baseline: bool = Field(False, description="take the mean score of the prompt's responses off first")
        whiten_advantages: bool = Field(
            True, description="returns to mean 0 and variance 1 over all tokens of the iteration"
        )
        clip_range: float = Field(0.2, gt=0, description="policy ratio may move so far in one iteration")
        clip_range_high: float | None = Field(None, gt=0, description="the same upwards, where it differs")
        aggregation: Literal["token_mean", "sequence_mean"] = Field(
            "token_mean", description="mean over tokens, or over responses of their token means"
        )

    @property
    def needs(self) -> Needs:
        """A group's mean takes two."""
        least = 2 if self.options.group_baseline else 1
        return Needs(old_logprobs=True, reference_logprobs=True, min_samples=least)

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R, T]."""
        o, mask, scores = self.options, rollouts.mask, rollouts.rewards
        if o.group_baseline:
            scores = F.centered_advantages(scores, rollouts.group_index)
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        returns = F.reinforce_returns(scores, kl, mask, o.kl_coefficient)
        counted = returns[mask]
        self.metrics = {}
        if len(counted):
            self.metrics = {"return": float(counted.mean()), "return_std": float(counted.std(correction=0))}
        if not (counted - counted[:1]).abs().gt(ROUNDING).any():
            return Skip("all returns are equal")
        return {"advantages": F.masked_whiten(returns, mask) if o.whiten_advantages else returns}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, mask = self.options, batch.mask
        policy = F.ppo_policy_loss(
            out.logprobs, batch.old_logprobs, batch["advantages"], o.clip_range, o.clip_range_high or o.clip_range
        )
        return Loss(
            policy_loss=per_token(policy)
            if o.aggregation == "token_mean"
            else per_response(F.mean_tokens(policy, mask))
        )

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Over counted tokens: share whose gradient the clip removes, KL moved in this iteration (k3), the ratio."""
        o, old, mask = self.options, batch.old_logprobs, batch.mask
        clipped = F.clipped(
            out.logprobs, old, batch["advantages"], o.clip_range, o.clip_range_high or o.clip_range, mask
        )
        return {
            "clip_fraction": per_token(clipped),
            "approx_kl": per_token(F.kl_k3(old, out.logprobs, mask)),
            "ratio": per_token(F.ratio(out.logprobs, old, mask)),
        }


@hookimpl
def register_algorithms(register: Register) -> None:
    register("reinforce_pp", ReinforcePP, summary="REINFORCE++: clipped updates with returns whitened over the batch")
