"""REINFORCE with a baseline (Williams 1992; leave-one-out: Ahmadian et al. 2024, arXiv:2402.14740,
section 3.2).

A whole response is one action. Its return is the score minus `kl_coefficient` times the KL to the
reference. A baseline that does not depend on the response is subtracted from the return. Differs
from Williams: the KL penalty. There is no importance ratio, so with several steps per iteration
(`batch_size` below `prompts_per_iteration`, or `epochs` above 1) the later steps learn from
responses of a slightly older policy. A few steps did no harm (docs/plugins/tutorial.md, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from alignkit import (
    Add,
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    Source,
    StageDefaults,
    hookimpl,
    per_response,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class Reinforce(Algorithm):
    """Make responses likelier that return more than expected, and the others less likely."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-4,
        epochs=1,
        batch_size=64,
        lr_scheduler_type="constant",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(
            0.05, ge=0, description="weight of the KL to the reference: reward per nat"
        )
        baseline: Literal["leave_one_out", "running_mean"] = Field(
            "leave_one_out",
            description="mean return of the prompt's other responses, or of earlier iterations",
        )
        decay: float = Field(
            0.9, ge=0, lt=1, description="weight of earlier iterations in the running mean"
        )

    @property
    def needs(self) -> Needs:
        """Leaving one response out needs two."""
        min_samples = 2 if self.options.baseline == "leave_one_out" else 1
        return Needs(
            old_logprobs=True,
            reference_logprobs=True,
            advantages="sequence",
            min_samples=min_samples,
        )

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages, [R]."""
        kl = F.sum_tokens(
            F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask),
            rollouts.mask,
        )
        returns = rollouts.rewards - self.options.kl_coefficient * kl  # [R]
        self.metrics = {"return": float(returns.mean())}
        if self.options.baseline == "leave_one_out":
            return {"advantages": F.rloo_advantages(returns, rollouts.group_index)}
        mean, decay = self.metrics["return"], self.options.decay
        # `state` is in every checkpoint, so a resumed run agrees
        baseline = self.state.get("baseline", mean)
        self.state["baseline"] = decay * baseline + (1 - decay) * mean
        return {"advantages": returns - baseline}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(
            policy_loss=per_response(-batch["advantages"] * F.sum_tokens(out.logprobs, batch.mask))
        )


@hookimpl
def register(add: Add) -> None:
    add("algorithm", "reinforce", Reinforce, "policy gradient with a baseline")
