"""Group filtered policy optimization: sample more to think less (GFPO, Shrivastava et al. 2025,
arXiv:2508.09726).

Of a prompt's samples, only `keep` are learned from: the shortest, or those with the highest reward
per token. Their advantages are normalized among themselves, so a long response is neither rewarded
nor punished, but left out. Differs from the paper: `keep` is the same for all prompts (the paper's
adaptive difficulty gives hard prompts more). The samples that are left out count in no average, as
in TRL's removed trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import alignkit as ak
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class GFPO(ak.Algorithm):
    """GRPO among the samples of a prompt that are short, or that earn much reward per token."""

    source = ak.Source.ROLLOUTS
    needs = ak.Needs(old_logprobs=True, reference_logprobs=True, advantages="token", min_samples=2)
    defaults = ak.StageDefaults(
        learning_rate=1e-3,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=16,
    )

    class Options(ak.Algorithm.Options):
        keep: int = ak.Field(
            8, ge=2, description="samples of a prompt to learn from: the paper's k"
        )
        metric: Literal["length", "efficiency"] = ak.Field(
            "length",
            description=(
                "keep the shortest samples, or those with the highest reward per token (of "
                "rewards from 0)"
            ),
        )
        kl_coefficient: float = ak.Field(
            0.0, ge=0, description="weight of the KL to the reference: a term of the loss"
        )
        clip_range: float = ak.Field(0.2, gt=0, description="clip range of the policy ratio")
        clip_range_high: float | None = ak.Field(
            None, gt=0, description="upper clip range, if different"
        )

    def signal(self, rollouts: ak.Batch) -> Mapping[str, Tensor] | ak.Skip:
        """Advantages [R], 0 for samples that are left out, and which are kept [R]."""
        lengths, kept = rollouts.mask.sum(dim=1), rollouts.mask.new_zeros(len(rollouts.mask))
        scores = (
            -lengths.double()
            if self.options.metric == "length"
            else rollouts.rewards.double() / lengths
        )
        for group in rollouts.group_index.unique():
            own = (rollouts.group_index == group).nonzero()[:, 0]
            # Of equal ones, the first
            best = scores[own].argsort(descending=True, stable=True)[: self.options.keep]
            kept[own[best]] = True
        advantages = rollouts.rewards.new_zeros(len(kept))
        advantages[kept] = F.grpo_advantages(rollouts.rewards[kept], rollouts.group_index[kept])
        lengths = lengths.float()
        self.metrics = {
            "kept_tokens": float(lengths[kept].mean()),
            "sampled_tokens": float(lengths.mean()),
        }
        if not advantages.any() and not self.options.kl_coefficient:
            return ak.Skip("the kept samples of every prompt have equal rewards")
        return {"advantages": advantages, "kept": kept.float()}

    def loss(self, batch: ak.Batch, out: ak.Outputs) -> ak.Loss:
        o, advantages = self.options, batch["advantages"]
        per_token = (
            advantages if advantages.dim() == 2 else advantages[:, None].expand_as(out.logprobs)
        )
        policy = F.ppo_policy_loss(
            out.logprobs, batch.old_logprobs, per_token, o.clip_range, o.clip_range_high
        )
        terms = ak.Loss(policy_loss=ak.per_token(policy))
        if o.kl_coefficient:
            k3 = F.kl_k3(out.logprobs, batch.reference_logprobs, batch.mask)
            terms["kl_loss"] = ak.per_token(k3, o.kl_coefficient)
        return terms

    def term_weights(self, batch: ak.Batch) -> Mapping[str, Tensor]:
        """Means are over the tokens of the kept samples."""
        weights = batch.mask.float() * batch["kept"][:, None]
        return (
            {"policy_loss": weights, "kl_loss": weights}
            if self.options.kl_coefficient
            else {"policy_loss": weights}
        )


@ak.hookimpl
def register(add: ak.Add) -> None:
    add(
        "algorithm",
        "gfpo",
        GFPO,
        "GRPO among the shortest samples, or those with the most reward per token",
    )
