"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740, section 3.2).

A whole response is one action; its return is the score minus beta times the KL of the whole response. Differs from the
paper: the ratio to the policy that sampled is clipped as in PPO, so that rollouts may be learned more than once; at
ratio 1, in the first step of an iteration, the gradient is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
    teaches = True  # whether this iteration has anything to learn from

    class Options(Algorithm.Options):
        kl_beta: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in reward units")
        clip: float = Field(0.2, gt=0, description="ratio of a whole response may move so far in one iteration")
        clip_high: float | None = Field(None, gt=0, description="the same upwards, where it differs")

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages, [R]."""
        assert rollouts.rewards is not None
        assert rollouts.old_logprobs is not None and rollouts.reference_logprobs is not None
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask)
        returns = rollouts.rewards - self.options.kl_beta * F.sum_tokens(kl, rollouts.mask)
        advantages = F.rloo_advantages(returns, rollouts.group)
        self.metrics = {"return": float(returns.mean()), "advantage_size": float(advantages.abs().mean())}
        self.teaches = bool(advantages.abs().max() > ROUNDING)
        return {"advantages": advantages}

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """All, or none where no return differs from its group's: the iteration is skipped (`empty_selection`)."""
        return groups if self.teaches else []

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, (logprobs, old) = self.options, _sums(batch, out)
        policy = F.ppo_policy_loss(logprobs, old, batch["advantages"], o.clip, o.clip_high or o.clip)
        return Loss(policy=per_response(policy))

    def report(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Share of responses whose gradient the clip removes, their ratio; KL moved in this iteration (k3)."""
        assert out.logprobs is not None and batch.old_logprobs is not None
        o, sums = self.options, _sums(batch, out)
        moved = F.kl_k3(batch.old_logprobs, out.logprobs, batch.mask)
        return {
            "clip_fraction": per_response(F.clipped(*sums, batch["advantages"], o.clip, o.clip_high or o.clip)),
            "ratio": per_response(F.ratio(*sums)),
            "moved": per_token(moved),
        }


def _sums(batch: Batch, out: Outputs) -> tuple[Tensor, Tensor]:
    """log P(response) now and when it was sampled, [R] nats."""
    assert out.logprobs is not None and batch.old_logprobs is not None
    return F.sum_tokens(out.logprobs, batch.mask), F.sum_tokens(batch.old_logprobs, batch.mask)


@hookimpl
def register_algorithms(register):  # type: ignore[no-untyped-def]
    register("rloo", RLOO, summary="policy gradient on whole responses with a leave-one-out baseline")
