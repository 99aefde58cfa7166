"""PPO: proximal policy optimization with a KL penalty per token (Schulman et al. 2017,
arXiv:1707.06347).

As in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 2), the reward of a token is minus the
KL to the reference, and the last token also receives the score. Advantages are GAE's, from a value
role; both losses are clipped. InstructGPT's pretraining mix (ptx) is the stage's `mix`. The level
of a reward does not matter. InstructGPT shifts scores so that demonstrations score 0 on average;
here they are centered on the mean of the stage's first iteration, as in Ziegler et al. 2019
(arXiv:1909.08593, section 2.1). With `group_baseline` they are centered on the mean of their
prompt's K samples. That has less noise, but makes the reward (K - 1) / K as large next to the KL
penalty. Differs from InstructGPT: `lam` is 1. Values that start at zero do not know what a partial
response is worth, so below 1 the score of a response would count more in its last tokens than in
its first. The clip range suits LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Loss,
    Needs,
    Outputs,
    Source,
    StageDefaults,
    Term,
    per_response,
    per_token,
)
from alignkit import functional as F
from alignkit.contract.batch import likelier_now
from alignkit.data.group import responses_of

if TYPE_CHECKING:
    from torch import Tensor


class Clipped(Algorithm):
    """The clipped update of PPO and its relatives, by the advantages that `signal` computes."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=1e-3,
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        kl_coefficient: float = Field(
            0.05, "weight of the KL to the reference: reward per nat", ge=0
        )
        whiten_rewards: bool = Field(
            False,
            "scale rewards to mean 0 and variance 1 over the iteration's responses (Llama 2)",
        )
        clip_range: float = Field(0.2, "clip range of the policy ratio", gt=0)
        clip_range_high: float | None = Field(
            None, "upper clip range, if different (DAPO: 0.28; CISPO: 4)", gt=0
        )

    @property
    def needs(self) -> Needs:
        """Subclasses say how their advantages are."""
        whiten = self.options.whiten_rewards
        return Needs(old_logprobs=True, reference_logprobs=True, whiten_rewards=whiten)

    def ratios(self, batch: Batch, out: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New and old log-probabilities, advantages and mask: [R, T] each, or [R] for whole
        responses.
        """
        return out.logprobs, batch.old_logprobs, batch["advantages"], batch.mask

    @property
    def bounds(self) -> tuple[float, float | None, float | None]:
        """The clip ranges below and above 1 and the dual clip of the ratio, as functions of
        `alignkit.functional` take them.
        """
        return self.options.clip_range, self.options.clip_range_high, None

    def policy_loss(self, batch: Batch, out: Outputs) -> Tensor:
        # No mask: all inputs are 0 where no token counts, so r is 1 there, and the average leaves
        # these entries out.
        logprobs, old, advantages, _ = self.ratios(batch, out)
        return F.ppo_policy_loss(logprobs, old, advantages, *self.bounds)

    def clipped(self, batch: Batch, out: Outputs) -> Tensor:
        """Marks the ratios that have no gradient."""
        logprobs, old, advantages, mask = self.ratios(batch, out)
        return F.clipped(logprobs, old, advantages, *self.bounds, mask=mask)

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """The share that clipping leaves without a gradient (with less weight in CISPO), the ratio,
        and the KL to the old policy: of tokens, or of whole responses.
        """
        logprobs, old, _, mask = self.ratios(batch, out)
        per = per_response if mask.dim() == 1 else per_token
        return {
            "clip_fraction": per(self.clipped(batch, out)),
            "ratio": per(F.ratio(logprobs, old, mask)),
            # KL(old || new): k3 needs samples of its first argument, and the old policy wrote them.
            "approx_kl": per_token(F.kl_k3(batch.old_logprobs, out.logprobs, batch.mask)),
        }


class ByToken(Clipped):
    """Methods whose advantages differ from token to token."""

    class Options(Clipped.Options):
        whiten_advantages: bool = Field(
            True, "scale advantages to mean 0 and variance 1 over the iteration's tokens"
        )
        group_baseline: bool = Field(
            False, "subtract the mean score of a prompt's samples; values then start near zero"
        )
        aggregation: Literal["token_mean", "sequence_mean"] = Field(
            "token_mean", "how the policy loss is averaged: over tokens, or per response first"
        )

    @property
    def needs(self) -> Needs:
        """The mean of a group needs two samples."""
        return replace(
            super().needs, advantages="token", min_samples=2 if self.options.group_baseline else 1
        )


class PPO(ByToken):
    """Maximize the reward minus a KL penalty."""

    defaults = replace(Clipped.defaults, optimizer={"eps": 1e-5}, samples_per_prompt=2)

    class Options(ByToken.Options):
        kl_target: float | None = Field(
            None,
            "target KL for adapting kl_coefficient, in nats per response (Ziegler et al. 2019)",
            gt=0,
        )
        kl_horizon: float | None = Field(
            None, "responses over which kl_coefficient adapts; default: those of an iteration", gt=0
        )
        gamma: float = Field(1.0, "discount per token", gt=0, le=1)
        lam: float = Field(1.0, "lambda of GAE: 0 trusts the values, 1 the returns", ge=0, le=1)
        value_clip_range: float | None = Field(
            0.2, "clip range of the value update; null: no clipping", gt=0
        )
        dual_clip: float | None = Field(
            None, "dual-clip bound of the ratio for negative advantages (Ye et al. 2020)", gt=1
        )
        value_coefficient: float = Field(0.1, "weight of the value loss", ge=0)
        entropy_coefficient: float = Field(0.0, "weight of the entropy bonus", ge=0)
        center_scores: bool = Field(
            True, "without a group baseline: subtract the mean score of the stage's first iteration"
        )
        shared_value: bool = Field(
            False, "read values from the policy's hidden states; nearly halves the training time"
        )
        score_clip: float | None = Field(None, "clip scores to plus or minus this", gt=0)

        def check_values(self) -> None:
            if self.kl_target is not None and not self.kl_coefficient:
                raise ValueError(
                    "kl_target scales kl_coefficient, so kl_coefficient must be above 0"
                )
            if (
                self.group_baseline
                and self.center_scores
                and "center_scores" in self.model_fields_set
            ):
                raise ValueError("group_baseline centers scores: leave center_scores out")
            if self.kl_target is None and "kl_horizon" in self.model_fields_set:
                raise ValueError("kl_horizon only applies to kl_target")

    @property
    def needs(self) -> Needs:
        """Adds values, and the entropy, which is reported at least."""
        o = self.options
        return replace(
            super().needs,
            values=True,
            shared_values=o.shared_value,
            centered_values=o.center_scores or o.group_baseline or o.whiten_rewards,
            entropy=True if o.entropy_coefficient else "reported",
        )

    @property
    def bounds(self) -> tuple[float, float | None, float | None]:
        return self.options.clip_range, self.options.clip_range_high, self.options.dual_clip

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Advantages and returns, [R, T]. The KL coefficient adapts for the next iteration."""
        o, mask = self.options, rollouts.mask
        kl_coefficient = self.state.get("kl_coefficient", o.kl_coefficient)
        # The KL of the policy before this iteration's updates, hence its old log-probabilities.
        rewards = F.shape_rewards(
            self._scores(rollouts),
            rollouts.old_logprobs,
            rollouts.reference_logprobs,
            mask,
            kl_coefficient,
        )
        advantages, returns = F.gae(rewards, rollouts.old_values, mask, o.gamma, o.lam)
        self.metrics = {
            "kl_coefficient": kl_coefficient,
            "return": float(F.masked_mean(returns, mask)),
            "explained_variance": _explained_variance(rollouts.old_values[mask], returns[mask]),
        }
        if o.score_clip is not None and len(rollouts.rewards):
            beyond = rollouts.rewards.abs() > o.score_clip  # there, scores are all equal
            self.metrics["scores_clipped"] = float(beyond.float().mean())
        if o.kl_target is not None:
            # The next iteration uses it; these rewards have been paid with the present one.
            self.state["kl_coefficient"] = self._adapted(kl_coefficient, rollouts)
        return {
            # They are whitened here and not in the loss, where a minibatch's own mean and
            # deviation would change the objective from step to step.
            "advantages": F.masked_whiten(advantages, mask) if o.whiten_advantages else advantages,
            "returns": returns,
        }

    def _scores(self, rollouts: Batch) -> Tensor:
        """Clipped and centered scores, [R]."""
        o, scores = self.options, rollouts.rewards
        if o.score_clip is not None:
            scores = scores.clamp(-o.score_clip, o.score_clip)
        if o.group_baseline:
            # As in GRPO: how hard a prompt is says nothing about which of its responses is better.
            return F.centered_advantages(scores, rollouts.group_index)
        if not o.center_scores or not len(scores):
            return scores
        # The first iteration fixes it, because the values have learned returns with this level
        # (Ziegler et al. 2019, section 2.1).
        return scores - self.state.setdefault("score_level", float(scores.mean()))

    def _adapted(self, kl_coefficient: float, rollouts: Batch) -> float:
        o, old, mask = self.options, rollouts.old_logprobs, rollouts.mask
        written = likelier_now(responses_of(rollouts.groups), old)
        tokens = F.kl_k1(old, rollouts.reference_logprobs, mask) * written
        kl = F.sum_tokens(tokens, mask)
        horizon = o.kl_horizon or len(kl)
        # With more responses than the horizon, one iteration could make the coefficient negative.
        return F.adaptive_kl(
            kl_coefficient, float(kl.mean()), o.kl_target, horizon, min(len(kl), horizon)
        )

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o = self.options
        value = F.ppo_value_loss(out.values, batch.old_values, batch["returns"], o.value_clip_range)
        return Loss(
            policy_loss=per_token(self.policy_loss(batch, out)),
            value_loss=per_token(value, o.value_coefficient),
            entropy=per_token(out.entropy, -o.entropy_coefficient),  # a bonus, so subtracted
        )

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """With `aggregation: sequence_mean` the tokens of a response share a weight of 1."""
        if self.options.aggregation == "token_mean":
            return {}
        # They sum to the number of responses that count, which becomes the denominator.
        mask = batch.mask.float()
        return {"policy_loss": mask / mask.sum(dim=1, keepdim=True).clamp(min=1)}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Adds the share of tokens whose value has no gradient."""
        o = self.options
        metrics = {**super().report_metrics(batch, out)}
        values = F.value_clipped(out.values, batch.old_values, batch["returns"], o.value_clip_range)
        metrics["value_clip_fraction"] = per_token(values)
        return metrics


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """Share of the variance of the returns that the values explain, for [N] and [N]; 0 if the
    returns are equal.
    """
    if len(returns) < 2 or F.nearly_equal(returns.max(), returns.min()):
        return 0.0
    return 1 - float((returns - values).var() / returns.var())
