"""GRPO: policy gradient with the mean of a prompt's samples as baseline (Shao et al. 2024,
arXiv:2402.03300, eq. 3).

Later corrections are options: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), DAPO (Yu et al. 2025,
arXiv:2503.14476), GSPO (Zheng et al. 2025, arXiv:2507.18071), CISPO (MiniMax-M1, 2025,
arXiv:2506.13585, eq. 4) and MaxRL (Tajwar et al. 2026, arXiv:2602.02710). DAPO's dynamic sampling
is the filter `spread` with `rollout.max_num_gen_batches`. An iteration that has nothing to
learn from is skipped and counted.

Two relatives have other advantages and the same clipped update, so that rollouts can be learned
from more than once; in the first step of an iteration the ratio is 1.

RLOO: a whole response is one action. Its
return is the score minus `kl_coefficient` times the KL of the response, and its baseline is the
mean return of the prompt's others.

REINFORCE++: the return of a token is the score minus `kl_coefficient`
times the KL from this token to the end, whitened over all tokens of the iteration. `group_baseline`
makes it REINFORCE++-baseline; the KL then stays in the reward, whereas later versions of the paper
add k2 to the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from alignkit import (
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    RunFailed,
    Skip,
    Term,
    per_response,
    per_token,
)
from alignkit import functional as F
from alignkit_plugins.algorithms.ppo import ByToken, Clipped

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6  # nats or reward units; smaller differences are rounding errors


class GRPO(Clipped):
    """Make responses likelier that score above the mean of their group, and the others less
    likely.
    """

    defaults = replace(Clipped.defaults, samples_per_prompt=8)

    class Options(Clipped.Options):
        kl_coefficient: float = Field(
            0.04, "weight of the KL to the reference: a term of the loss (k3)", ge=0
        )
        scale_by_std: bool = Field(
            True, "divide advantages by the standard deviation of the group (Dr. GRPO: false)"
        )
        scale_by_mean: bool = Field(
            False,
            (
                "divide advantages by the group's mean reward instead (MaxRL); needs rewards of "
                "0 or more"
            ),
        )
        policy_loss: Literal["clipped", "cispo"] = Field(
            "clipped",
            (
                "PPO's clipped objective, or a capped ratio as weight: all tokens keep a "
                "gradient (CISPO)"
            ),
        )
        entropy_coefficient: float = Field(
            0.0, "weight of the entropy bonus, a mean over tokens", ge=0
        )
        ratio: Literal["token", "sequence"] = Field(
            "token", "ratio of each token, or of the whole response (GSPO)"
        )
        aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = Field(
            "sequence_mean",
            (
                "how the policy loss is averaged: per response first, over tokens, or as sum / "
                "max_tokens"
            ),
        )
        max_tokens: int | None = Field(
            None,
            (
                "maximum response length, in tokens; overlong_cache requires the rollout's "
                "max_new_tokens"
            ),
            ge=1,
        )
        overlong_cache: int | None = Field(
            None,
            "number of tokens before max_tokens over which the penalty rises to 1 (DAPO)",
            ge=1,
        )

        def check_values(self) -> None:
            if self.max_tokens is None and (
                self.aggregation == "constant_length" or self.overlong_cache is not None
            ):
                raise ValueError(
                    "'aggregation: constant_length' and overlong_cache need max_tokens"
                )
            if (
                self.max_tokens is not None
                and self.aggregation != "constant_length"
                and self.overlong_cache is None
            ):
                raise ValueError(
                    "max_tokens only applies to 'aggregation: constant_length' and overlong_cache"
                )
            if (self.overlong_cache or 0) > (self.max_tokens or 0):
                raise ValueError(
                    f"overlong_cache {self.overlong_cache} is above max_tokens {self.max_tokens}"
                )
            if self.ratio == "sequence" and self.aggregation != "sequence_mean":
                raise ValueError("'ratio: sequence' requires 'aggregation: sequence_mean'")
            if self.scale_by_mean and "scale_by_std" in self.model_fields_set and self.scale_by_std:
                raise ValueError(
                    "advantages are divided by the deviation or by the mean: remove one of "
                    "scale_by_..."
                )
            if self.policy_loss == "cispo":
                self._check_cispo()

        def _check_cispo(self) -> None:
            if self.ratio == "sequence":
                raise ValueError("'policy_loss: cispo' weighs tokens and requires 'ratio: token'")
            if self.clip_range_high is None or "clip_range" in self.model_fields_set:
                raise ValueError(
                    "'policy_loss: cispo' has no lower bound: set clip_range_high, and not "
                    "clip_range"
                )

    @property
    def needs(self) -> Needs:
        """The mean of a group needs two samples."""
        longest = self.options.max_tokens if self.options.overlong_cache is not None else None
        return replace(
            super().needs,
            advantages=self.options.ratio,
            entropy=self.options.entropy_coefficient > 0,
            min_samples=2,
            max_new_tokens=longest,
        )

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R]: all tokens of a response share one."""
        o, rewards = self.options, rollouts.rewards
        self.metrics = {}
        if o.overlong_cache is not None:
            penalty = F.overlong_penalty(rollouts.mask.sum(dim=1), o.max_tokens, o.overlong_cache)
            self.metrics["overlong_penalty"] = float(penalty.mean())
            rewards = rewards + penalty  # the penalty is 0 to -1
        # After the penalty, which can set equal rewards apart.
        spread = F.group_has_spread(rewards, rollouts.group_index)
        self.metrics["groups_without_spread"] = rollouts.group_index[~spread].unique().numel()
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask)
        # With equal rewards all advantages are 0, and only the KL or the entropy can move the
        # policy.
        pulled = o.entropy_coefficient > 0 or (o.kl_coefficient > 0 and kl.abs().max() > ROUNDING)
        if not spread.any() and not pulled:
            return Skip("the rewards within every group are equal")
        return {"advantages": self._advantages(rewards, rollouts.group_index)}

    def _advantages(self, rewards: Tensor, group_index: Tensor) -> Tensor:
        if self.options.scale_by_mean:
            if (rewards < 0).any():
                raise RunFailed(
                    "grpo: 'scale_by_mean' needs rewards of 0 or more, but one is "
                    f"{float(rewards.min()):.3g}\n"
                    "help: use a reward of right (1) and wrong (0), or remove scale_by_mean"
                )
            return F.maxrl_advantages(rewards, group_index)
        advantages = F.grpo_advantages if self.options.scale_by_std else F.centered_advantages
        return advantages(rewards, group_index)

    def policy_loss(self, batch: Batch, out: Outputs) -> Tensor:
        if self.options.policy_loss != "cispo":
            return super().policy_loss(batch, out)
        logprobs, old, advantages, _ = self.ratios(batch, out)
        return F.cispo_policy_loss(logprobs, old, advantages, self.options.clip_range_high)

    def clipped(self, batch: Batch, out: Outputs) -> Tensor:
        if self.options.policy_loss != "cispo":
            return super().clipped(batch, out)
        # There is no lower bound, and the cap does not depend on the sign of the advantage.
        logprobs, old, _, mask = self.ratios(batch, out)
        ratio = F.ratio(logprobs, old, mask)
        return (ratio > 1 + self.options.clip_range_high).to(ratio.dtype)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, policy = self.options, self.policy_loss(batch, out)
        terms = Loss(
            policy_loss=per_response(policy)
            if o.ratio == "sequence"
            else self._aggregated(policy, batch.mask)
        )
        if o.kl_coefficient:
            # A loss, so the gradient flows through k3; it is not part of the rewards as in a
            # penalty per token.
            k3 = F.kl_k3(out.logprobs, batch.reference_logprobs, batch.mask)  # Shao et al., eq. 4
            terms["kl_loss"] = self._aggregated(k3, batch.mask, o.kl_coefficient)
        if o.entropy_coefficient:
            # It is a bonus, so it is subtracted.
            terms["entropy"] = per_token(out.entropy, -o.entropy_coefficient)
        return terms

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """With a constant length, the average includes responses without a counted token."""
        if self.options.aggregation != "constant_length":
            return {}
        # A term's sums are divided by the weights of the global batch, here its number of
        # responses.
        ones = batch.mask.new_ones(len(batch.mask)).float()
        return {"policy_loss": ones, "kl_loss": ones}

    def ratios(self, batch: Batch, out: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        advantages = batch["advantages"]
        if self.options.ratio == "token":
            if advantages.dim() == 1:  # they are [R, T] if an engine's `importance` weighs tokens
                advantages = advantages[:, None].expand_as(out.logprobs)
            return out.logprobs, batch.old_logprobs, advantages, batch.mask
        # This is eq. 7 of Zheng et al.
        log_ratio = F.sequence_log_ratio(out.logprobs, batch.old_logprobs, batch.mask)
        # As new and old log-probabilities: exp(log_ratio - 0) is the ratio of the response.
        return log_ratio, log_ratio.new_zeros(len(log_ratio)), advantages, batch.mask.any(dim=1)

    def _aggregated(self, values: Tensor, mask: Tensor, coefficient: float = 1.0) -> Term:
        """Values [R, T] as a term: averaged as in DAPO eq. 8, Shao et al. eq. 3, or over Dr. GRPO's
        constant length.
        """
        if self.options.aggregation == "token_mean":
            return per_token(values, coefficient)
        if self.options.aggregation == "sequence_mean":
            return per_response(F.mean_tokens(values, mask), coefficient)
        return per_response(F.sum_tokens(values, mask) / self.options.max_tokens, coefficient)


class RLOO(Clipped):
    """Make responses likelier that return more than the prompt's others, and the rest less
    likely (Ahmadian et al. 2024, arXiv:2402.14740, section 3.2).
    """

    defaults = replace(Clipped.defaults, epochs=1)

    @property
    def needs(self) -> Needs:
        """The baseline of a response needs another one."""
        return replace(super().needs, advantages="sequence", min_samples=2)

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R]."""
        kl = F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask)
        returns = rollouts.rewards - self.options.kl_coefficient * F.sum_tokens(kl, rollouts.mask)
        advantages = F.rloo_advantages(returns, rollouts.group_index)
        self.metrics = {
            "return": float(returns.mean()),
            "advantage_size": float(advantages.abs().mean()),
        }
        if not advantages.abs().max() > ROUNDING:
            return Skip("the returns within every group are equal")
        return {"advantages": advantages}

    def ratios(self, batch: Batch, out: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mask = batch.mask
        sums = F.sum_tokens(out.logprobs, mask), F.sum_tokens(batch.old_logprobs, mask)
        return *sums, batch["advantages"], mask.any(dim=1)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(policy_loss=per_response(self.policy_loss(batch, out)))


class ReinforcePP(ByToken):
    """Make tokens likelier that return more than the iteration's mean, and the others less
    likely (Hu 2025, arXiv:2501.03262).
    """

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
            self.metrics = {
                "return": float(counted.mean()),
                "return_std": float(counted.std(correction=0)),
            }
        if not (counted - counted[:1]).abs().gt(ROUNDING).any():
            return Skip("all returns are equal")
        return {"advantages": F.masked_whiten(returns, mask) if o.whiten_advantages else returns}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        policy = self.policy_loss(batch, out)
        if self.options.aggregation == "token_mean":
            return Loss(policy_loss=per_token(policy))
        return Loss(policy_loss=per_response(F.mean_tokens(policy, batch.mask)))
