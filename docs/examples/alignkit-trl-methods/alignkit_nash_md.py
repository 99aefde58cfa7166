"""Nash-MD: win against a mixture of the policy and the reference (Munos et al. 2023,
arXiv:2312.00886, Nash-MD-PG).

A response y learns from its advantage P(y wins against y') - 1/2 - tau log(pi(y)/mu(y)). mu is the
reference, and the opponent y' is drawn from the geometric mixture pi^(1 - mixture) mu^mixture.
Differs from the paper: opponents are the other samples of the same prompt, weighted by
(mu/pi)^mixture. With many samples that is the paper's expectation over the mixture of whole
responses; the paper's samples mix token by token. P(y wins) comes from the reward, so it is
transitive: by Bradley-Terry, or 1 for the higher score. There is no importance ratio, so an
iteration should be one step (`batch_size` at least `prompts_per_iteration`).
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


class NashMD(Algorithm):
    """Make responses likelier that win against the mixture of policy and reference."""

    source = Source.ROLLOUTS
    # Of two samples, the only opponent has weight 1.
    needs = Needs(old_logprobs=True, reference_logprobs=True, advantages="sequence", min_samples=3)
    defaults = StageDefaults(
        learning_rate=1e-4,
        epochs=1,
        batch_size=64,
        lr_scheduler_type="constant",
        samples_per_prompt=8,
    )

    class Options(Algorithm.Options):
        tau: float = Field(
            0.008, ge=0, description="weight of the KL to the reference: probability per nat"
        )
        mixture: float = Field(
            0.125,
            ge=0,
            le=1,
            description=(
                "share of the reference in the opponent: 0 is self-play, 1 is the reference"
            ),
        )
        preference: Literal["bradley_terry", "score"] = Field(
            "bradley_terry",
            description="P(win) is sigma(difference of the scores), or 1 for the higher score",
        )

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages, [R]."""
        # Log pi/mu
        log_ratios = F.sum_tokens(
            rollouts.old_logprobs - rollouts.reference_logprobs, rollouts.mask
        )
        wins = rollouts.rewards.new_empty(len(log_ratios))
        opponents = wins.clone()
        for group in range(len(rollouts.groups)):
            own = rollouts.group_index == group
            wins[own], opponents[own] = self._against_mixture(
                rollouts.rewards[own], log_ratios[own]
            )
        self.metrics = {
            "win_rate": float(wins.mean()),
            "effective_opponents": float(opponents.mean()),
        }
        return {"advantages": wins - 0.5 - self.options.tau * log_ratios}

    def _against_mixture(self, scores: Tensor, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
        """P(each of a prompt's K samples beats the mixture) [K], and how many opponents its weights
        amount to [K].
        """
        margin = scores[:, None] - scores
        wins = (
            margin.sigmoid()
            if self.options.preference == "bradley_terry"
            else (margin.sign() + 1) / 2
        )
        logits = (-self.options.mixture * log_ratios).expand_as(margin).clone()
        logits.fill_diagonal_(float("-inf"))  # nobody is its own opponent
        weights = logits.softmax(dim=1)
        return (weights * wins).sum(dim=1), 1 / weights.square().sum(dim=1)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(
            policy_loss=per_response(-batch["advantages"] * F.sum_tokens(out.logprobs, batch.mask))
        )


@hookimpl
def register(add: Add) -> None:
    add("algorithm", "nash_md", NashMD, "win against a mixture of the policy and the reference")
