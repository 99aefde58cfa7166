"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740, section 3.2).

A whole response is one action; its return is the score minus beta times the KL of the whole response. Differs from the
paper: the ratio to the policy that sampled is clipped as in PPO, so that rollouts may be learned more than once; at
ratio 1, in the first step of an iteration, the gradient is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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

ROUNDING = 1e-6  # advantages below it, in reward units, are rounding errors


class RLOO(Algorithm):
    """Raise the probability of responses whose return was above that of the others to their prompt."""

    source = ROLLOUTS
    needs = Needs(old_logprobs=True, reference_logprobs=True, min_samples=2)
    defaults = StageDefaults(
        learning_rate=1e-3,  # for LoRA on models of some 100M weights; a tenth of it above a billion
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in reward units")
        clip_range: float = Field(0.2, gt=0, description="ratio of a whole response may move so far in one iteration")
        clip_range_high: float | None = Field(None, gt=0, description="the same upwards, where it differs")

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R]."""
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask)
        returns = rollouts.rewards - self.options.kl_coefficient * F.sum_tokens(kl, rollouts.mask)
        advantages = F.rloo_advantages(returns, rollouts.group_index)
        self.metrics = {"return": float(returns.mean()), "advantage_size": float(advantages.abs().mean())}
        if not advantages.abs().max() > ROUNDING:
            return Skip("no return differs from the others of its group")
        return {"advantages": advantages}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, (logprobs, old) = self.options, _sums(batch, out)
        policy = F.ppo_policy_loss(logprobs, old, batch["advantages"], o.clip_range, o.clip_range_high or o.clip_range)
        return Loss(policy_loss=per_response(policy))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Share of responses whose gradient the clip removes, their ratio; KL moved in this iteration (k3)."""
        o, sums = self.options, _sums(batch, out)
        moved = F.kl_k3(batch.old_logprobs, out.logprobs, batch.mask)
        return {
            "clip_fraction": per_response(
                F.clipped(*sums, batch["advantages"], o.clip_range, o.clip_range_high or o.clip_range)
            ),
            "ratio": per_response(F.ratio(*sums)),
            "approx_kl": per_token(moved),
        }


def _sums(batch: Batch, out: Outputs) -> tuple[Tensor, Tensor]:
    """log P(response) now and when it was sampled, [R] nats."""
    return F.sum_tokens(out.logprobs, batch.mask), F.sum_tokens(batch.old_logprobs, batch.mask)


@hookimpl
def register_algorithms(register: Register) -> None:
    register("rloo", RLOO, summary="policy gradient on whole responses with a leave-one-out baseline")
