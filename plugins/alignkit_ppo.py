"""PPO: proximal policy optimisation with a per-token KL penalty (Schulman et al. 2017; InstructGPT 2022 eq. (2)).

Per-token rewards are -beta KL to the reference with the score on the last token (Ziegler et al. 2019), advantages
by GAE with a value role of its own, policy and value losses clipped. InstructGPT's ptx is the stage's `mix`.
Differs from InstructGPT: the score is normalised by demonstrations only where the recipe's reward is `normalized`;
learning rate and clip suit LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    Register,
    StageDefaults,
    Term,
    hookimpl,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class PPO(Algorithm):
    """Raise the reward at a price per nat of KL."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-3,  # for LoRA on models of some 100M weights; a tenth of it above a billion
        epochs=2,
        batch_size=16,
        adam_epsilon=1e-5,
        lr_scheduler_type="linear",
        samples_per_prompt=2,
    )

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in reward units")
        kl_target: float | None = Field(
            None, gt=0, description="nats per response; adapts kl_coefficient (Ziegler 2019)"
        )
        kl_horizon: float = Field(10_000, gt=0, description="responses over which kl_coefficient adapts")
        gamma: float = Field(1.0, gt=0, le=1, description="discount")
        lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda")
        clip_range: float = Field(0.2, gt=0, description="policy ratio may move so far in one iteration")
        clip_range_high: float | None = Field(None, gt=0, description="the same upwards, where it differs")
        value_clip_range: float | None = Field(0.2, gt=0, description="values may move so far; none: not clipped")
        dual_clip: float | None = Field(None, gt=1, description="bound on the loss at negative advantages")
        value_coefficient: float = Field(0.1, ge=0, description="weight of the value loss")
        entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
        whiten_advantages: bool = Field(True, description="to mean 0 and variance 1 over the iteration's tokens")
        group_baseline: bool = Field(
            False, description="take the mean score of a prompt's samples off, so that values start right at zero"
        )
        shared_value: bool = Field(
            False, description="values from a head on the policy's own hidden states; nearly halves the time to learn"
        )
        score_clip: float | None = Field(None, gt=0, description="scores are held within so much of 0")
        aggregation: Literal["token_mean", "sequence_mean"] = Field(
            "token_mean", description="what the policy loss is a mean of"
        )

        @model_validator(mode="after")
        def _target_has_a_use(self) -> PPO.Options:
            if self.kl_target is not None and not self.kl_coefficient:
                raise ValueError("kl_target moves kl_coefficient by shares of it: give kl_coefficient above 0")
            if self.kl_target is None and "kl_horizon" in self.model_fields_set:
                raise ValueError("kl_horizon bears on kl_target alone")
            return self

    @property
    def needs(self) -> Needs:
        """A group's mean takes two."""
        o = self.options
        return Needs(
            old_logprobs=True,
            reference_logprobs=True,
            values=True,
            shared_values=o.shared_value,
            centered_values=o.group_baseline,
            entropy=True if o.entropy_coefficient else "reported",
            min_samples=2 if o.group_baseline else 1,
        )

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages and returns, [R, T], with the KL price of this iteration, which adapts afterwards."""
        o, mask = self.options, rollouts.mask
        beta = self.state.get("kl_coefficient", o.kl_coefficient)
        scores = rollouts.rewards
        if o.score_clip is not None:
            scores = scores.clamp(-o.score_clip, o.score_clip)
        if o.group_baseline:  # as Shao et al. 2024; a prompt's level says nothing about its responses
            scores = F.centered_advantages(scores, rollouts.group_index)
        rewards = F.shape_rewards(scores, rollouts.old_logprobs, rollouts.reference_logprobs, mask, beta)
        advantages, returns = F.gae(rewards, rollouts.old_values, mask, o.gamma, o.lam)
        kl = F.sum_tokens(F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, mask), mask)
        self.metrics = {
            "kl_coefficient": beta,
            "return": float(F.masked_mean(returns, mask)),
            "explained_variance": _explained(rollouts.old_values[mask], returns[mask]),
        }
        if o.kl_target is not None:
            seen = min(len(kl), o.kl_horizon)  # beyond it one iteration could make the price negative
            self.state["kl_coefficient"] = F.adaptive_kl(beta, float(kl.mean()), o.kl_target, o.kl_horizon, seen)
        whitened = F.masked_whiten(advantages, mask) if o.whiten_advantages else advantages
        return {"advantages": whitened, "returns": returns}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o = self.options
        policy = F.ppo_policy_loss(
            out.logprobs,
            batch.old_logprobs,
            batch["advantages"],
            o.clip_range,
            o.clip_range_high or o.clip_range,
            o.dual_clip,
        )
        value = F.ppo_value_loss(out.values, batch.old_values, batch["returns"], o.value_clip_range)
        return Loss(
            policy_loss=per_token(policy),
            value_loss=per_token(value, o.value_coefficient),
            entropy=per_token(out.entropy, -o.entropy_coefficient),
        )

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """With `aggregation: sequence_mean` a response's tokens share the weight 1."""
        if self.options.aggregation == "token_mean":
            return {}
        mask = batch.mask.float()
        return {"policy_loss": mask / mask.sum(dim=1, keepdim=True).clamp(min=1)}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Over counted tokens: shares whose gradient the clips remove, KL moved in this iteration (k3), the ratio."""
        o, mask = self.options, batch.mask
        clipped = F.clipped(
            out.logprobs, batch.old_logprobs, batch["advantages"], o.clip_range, o.clip_range_high or o.clip_range
        )
        value_clipped = F.value_clipped(out.values, batch.old_values, batch["returns"], o.value_clip_range)
        return {
            "clip_fraction": per_token(clipped),
            "value_clip_fraction": per_token(value_clipped),
            "approx_kl": per_token(F.kl_k3(batch.old_logprobs, out.logprobs, mask)),
            "ratio": per_token(F.ratio(out.logprobs, batch.old_logprobs, mask)),
        }


def _explained(values: Tensor, returns: Tensor) -> float:
    """Share of the returns' variance that the values explain."""
    variance = float(returns.var()) if len(returns) > 1 else 0.0
    return 1 - float((returns - values).var()) / variance if variance else 0.0


@hookimpl
def register_algorithms(register: Register) -> None:
    register("ppo", PPO, summary="policy gradient with clipped updates, a value role and a KL price per token")
