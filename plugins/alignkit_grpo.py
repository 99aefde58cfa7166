"""GRPO: policy gradient with the group as its own baseline (Shao et al. 2024, arXiv:2402.03300, eq. 3).

Its corrections are options: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), DAPO (Yu et al. 2025, arXiv:2503.14476) and
GSPO (Zheng et al. 2025, arXiv:2507.18071). Differs from the papers: DAPO samples until the batch is full again, here
groups without spread are left out and counted; an iteration in which nothing can be learned is skipped and counted.
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
    Group,
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

ROUNDING = 1e-6  # nats; policy and reference that differ by less are the same


class GRPO(Algorithm):
    """Raise the probability of responses that did better than the others to their prompt."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-3,  # for LoRA on models of some 100M weights; a tenth of it above a billion
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=8,
    )

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(0.04, ge=0, description="weight of the KL to the reference (k3) in the loss")
        scale_by_std: bool = Field(True, description="of the group's rewards; Dr. GRPO does not")
        clip_range: float = Field(0.2, gt=0, description="policy ratio may move so far in one iteration")
        clip_range_high: float | None = Field(None, gt=0, description="the same upwards, where it differs (DAPO: 0.28)")
        ratio: Literal["token", "sequence"] = Field("token", description="what has a ratio; sequence: GSPO")
        aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = Field(
            "sequence_mean", description="mean over responses of their token means, over tokens, or sum / max_tokens"
        )
        dynamic_sampling: bool = Field(False, description="leave out groups whose rewards are all equal (DAPO)")
        max_tokens: int | None = Field(
            None, ge=1, description="longest response; with overlong_cache it must be the rollout's max_new_tokens"
        )
        overlong_cache: int | None = Field(
            None, ge=1, description="DAPO: the last tokens before max_tokens cost up to 1 reward"
        )

        @model_validator(mode="after")
        def _consistent(self) -> GRPO.Options:
            if self.max_tokens is None and (self.aggregation == "constant_length" or self.overlong_cache is not None):
                raise ValueError(
                    "'aggregation: constant_length' and 'overlong_cache' need max_tokens, as in the rollout"
                )
            if self.max_tokens is not None and self.aggregation != "constant_length" and self.overlong_cache is None:
                raise ValueError("max_tokens bears on 'aggregation: constant_length' and overlong_cache alone")
            if (self.overlong_cache or 0) > (self.max_tokens or 0):
                raise ValueError(f"overlong_cache {self.overlong_cache} is above max_tokens {self.max_tokens}")
            if self.ratio == "sequence" and self.aggregation != "sequence_mean":
                raise ValueError("'ratio: sequence' is a mean over responses: leave 'aggregation: sequence_mean'")
            return self

    @property
    def needs(self) -> Needs:
        """A group's mean takes two."""
        longest = self.options.max_tokens if self.options.overlong_cache is not None else None
        return Needs(old_logprobs=True, reference_logprobs=True, min_samples=2, max_new_tokens=longest)

    def keep_group(self, group: Group) -> bool:
        """By DAPO eq. (11) a group must hold rewards that differ."""
        rewards = {response.scores["reward"] for response in group.responses}
        return super().keep_group(group) and (len(rewards) > 1 or not self.options.dynamic_sampling)

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R]: the same for all tokens of a response."""
        o, rewards = self.options, rollouts.rewards
        self.metrics = {}
        if o.overlong_cache is not None:
            penalty = F.overlong_penalty(rollouts.mask.sum(dim=1), o.max_tokens, o.overlong_cache)
            self.metrics["overlong_penalty"] = float(penalty.mean())
            rewards = rewards + penalty
        spread = F.group_has_spread(rewards, rollouts.group_index)
        self.metrics["groups_without_spread"] = rollouts.group_index[~spread].unique().numel()
        away = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask).abs().max() > ROUNDING
        if not spread.any() and not (o.kl_coefficient > 0 and away):
            return Skip("no group has spread")
        advantages = F.grpo_advantages if o.scale_by_std else F.centered_advantages
        return {"advantages": advantages(rewards, rollouts.group_index)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o = self.options
        logprobs, old, advantages, _ = self._ratios(batch, out)
        policy = F.ppo_policy_loss(logprobs, old, advantages, o.clip_range, o.clip_range_high or o.clip_range)
        terms = Loss(
            policy_loss=per_response(policy) if o.ratio == "sequence" else self._aggregated(policy, batch.mask)
        )
        if o.kl_coefficient:
            k3 = F.kl_k3(out.logprobs, batch.reference_logprobs, batch.mask)  # Shao et al., eq. (4)
            terms["kl_loss"] = self._aggregated(k3, batch.mask, o.kl_coefficient)
        return terms

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """With a constant length a response without a counted token is one of the responses, too."""
        if self.options.aggregation != "constant_length":
            return {}
        every = batch.mask.new_ones(len(batch.mask)).float()
        return {"policy_loss": every, "kl_loss": every}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Share of tokens (or responses) whose gradient the clip removes, the ratio; KL moved in this iteration."""
        o, per = self.options, per_token if self.options.ratio == "token" else per_response
        logprobs, old, advantages, mask = self._ratios(batch, out)
        clipped = F.clipped(logprobs, old, advantages, o.clip_range, o.clip_range_high or o.clip_range, mask)
        moved = F.kl_k3(batch.old_logprobs, out.logprobs, batch.mask)
        return {
            "clip_fraction": per(clipped),
            "ratio": per(F.ratio(logprobs, old, mask)),
            "approx_kl": per_token(moved),
        }

    def _ratios(self, batch: Batch, out: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities after and before, advantages, mask: [R, T] each, or of whole responses, [R] (GSPO)."""
        advantages = batch["advantages"]
        if self.options.ratio == "token":
            return out.logprobs, batch.old_logprobs, advantages[:, None].expand_as(out.logprobs), batch.mask
        log_ratio = F.sequence_log_ratio(out.logprobs, batch.old_logprobs, batch.mask)  # Zheng et al., eq. (7)
        return log_ratio, log_ratio.new_zeros(len(log_ratio)), advantages, batch.mask.any(dim=1)

    def _aggregated(self, values: Tensor, mask: Tensor, coefficient: float = 1.0) -> Term:
        """Values [R, T] as a term: Shao et al. eq. (3), DAPO eq. (8), or Dr. GRPO's constant length."""
        if self.options.aggregation == "token_mean":
            return per_token(values, coefficient)
        if self.options.aggregation == "sequence_mean":
            return per_response(F.mean_tokens(values, mask), coefficient)
        return per_response(F.sum_tokens(values, mask) / self.options.max_tokens, coefficient)


@hookimpl
def register_algorithms(register: Register) -> None:
    register("grpo", GRPO, summary="policy gradient against the group's mean; Dr. GRPO, DAPO and GSPO as options")
