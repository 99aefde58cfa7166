"""Clipped policy and value losses of PPO and its relatives, and which tokens the clipping
affects.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, exponent, widen, zero_masked
from alignkit.functional.kl import log_ratio
from alignkit.functional.reductions import mean_tokens


def ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """pi / pi_old per token: [B, T] -> [B, T]; 1 on masked entries.

    Args:
        logprobs: [B, T], in nats, of the policy.
        old_logprobs: [B, T], in nats, of the policy that wrote the tokens.
        mask: [B, T]: true for tokens that count; None: all.
    """
    # The mask applies before exp, or the gradient of a masked entry would be 0 * inf.
    return exponent(log_ratio(logprobs, old_logprobs, mask)).exp()


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of log(pi / pi_old): [B, T] -> [B], the log of GSPO's importance ratio
    (Zheng et al. 2025).

    Args:
        logprobs: [B, T], in nats, of the policy.
        old_logprobs: [B, T], in nats, of the policy that wrote the tokens.
        mask: [B, T]: true for tokens that count.
    """
    return mean_tokens(log_ratio(logprobs, old_logprobs, mask), mask)


def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    cap: float | None = None,
    bounds: tuple[float, float] | None = None,
    *,
    sequence: bool = False,
) -> tuple[Tensor, Tensor]:
    """min(pi_old / pi_sampler, cap), or 0 if the ratio is outside of `bounds`; and this ratio, both
    without a gradient.

    Per token, [B, T] -> [B, T], 1 on masked entries; with `sequence` of whole responses, [B, T] ->
    [B]: the product over a response's tokens. Weights of the advantages, for samples of an engine
    whose probabilities differ from those of training although its weights are the same. The cap is
    truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"; Ionides 2008). Bounds are the mask of IcePop (Ant Group 2025, "Small
    leak can sink a great ship"), which is of tokens.
    """
    with torch.no_grad():
        log_ratios = log_ratio(old_logprobs, sampler_logprobs, mask)
        ratios = exponent(log_ratios.sum(dim=1) if sequence else log_ratios).exp()
        weights = ratios if cap is None else ratios.clamp(max=cap)
        if bounds is not None:
            # Judged before the cap, which would bring every large ratio back within the bounds.
            weights = weights.where(
                (ratios >= bounds[0]) & (ratios <= bounds[1]), torch.zeros_like(weights)
            )
        return weights, ratios


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The clipped policy loss of PPO per token, 0 on masked entries: [B, T] -> [B, T].

    -min(r A, clip(r, 1 - clip_range, 1 + clip_range_high) A), where r is the ratio of
    probabilities.

    Schulman et al. 2017, eq. (7). `clip_range_high` defaults to clip_range; a larger one is DAPO's
    clip-higher. `dual_clip` c > 1 bounds the loss by c |A| if A < 0 (Ye et al. 2020). Gradients
    flow through `logprobs` only. Works for any shape: GSPO passes [B].

    Args:
        logprobs: [B, T], in nats, of the policy.
        old_logprobs: [B, T], in nats, of the policy that wrote the tokens.
        advantages: [B, T]; no gradient flows into them.
        clip_range: How far the ratio may fall below 1.
        clip_range_high: How far it may rise above 1; None: as far as `clip_range`.
        dual_clip: The c > 1 that bounds the loss by c |A| if A < 0; None: no bound.
        mask: [B, T]: true for tokens that count; None: all.
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be greater than 1, not {dual_clip}")
    advantages = zero_masked(widen(advantages.detach()), mask)
    r = ratio(logprobs, old_logprobs.detach(), mask)
    # The minimum is pessimistic: clipping never makes an update look better than it is.
    objective = torch.minimum(
        r * advantages, _clip_ratio(r, clip_range, clip_range_high) * advantages
    )
    if dual_clip is not None:
        # For A < 0 the objective falls without bound as r grows; this gives it a floor.
        objective = torch.where(
            advantages < 0, torch.maximum(objective, dual_clip * advantages), objective
        )
    return -objective


def cispo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_range_high: float,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """-min(r, 1 + clip_range_high) A log pi per token, the weight without a gradient: [B, T] -> [B,
    T].

    CISPO, MiniMax-M1 2025, eqs. (4) and (5), without a lower bound, as in its experiments. Every
    token keeps its gradient; PPO's clipping drops it. Masked entries are 0. Gradients flow through
    `logprobs` only.

    Args:
        logprobs: [B, T], in nats, of the policy.
        old_logprobs: [B, T], in nats, of the policy that wrote the tokens.
        advantages: [B, T]; no gradient flows into them.
        clip_range_high: How far the weight may rise above 1.
        mask: [B, T]: true for tokens that count; None: all.
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    # Detached, so that the gradient is that of log pi even if the ratio is capped.
    weight = ratio(logprobs, old_logprobs, mask).clamp(max=1 + clip_range_high).detach()
    return (
        -weight * zero_masked(widen(advantages.detach()), mask) * zero_masked(widen(logprobs), mask)
    )


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """1 for tokens whose gradient the clipping removes, else 0: [B, T] -> [B, T].

    Those are the ones with clip(r) A < r A, and with a `dual_clip` c those with A < 0 and r > c.

    Args:
        logprobs: [B, T], in nats, of the policy.
        old_logprobs: [B, T], in nats, of the policy that wrote the tokens.
        advantages: [B, T]; no gradient flows into them.
        clip_range: How far the ratio may fall below 1.
        clip_range_high: How far it may rise above 1; None: as far as `clip_range`.
        dual_clip: The bound c > 1 of the ratio if A < 0; None: no bound.
        mask: [B, T]: true for tokens that count; None: all.
    """
    with torch.no_grad():
        r, advantages = ratio(logprobs, old_logprobs, mask), widen(advantages)
        # Then the minimum is the clipped product, in which r no longer appears.
        removed = _clip_ratio(r, clip_range, clip_range_high) * advantages < r * advantages
        if dual_clip is not None:
            removed |= (advantages < 0) & (r > dual_clip)
        return removed.to(r.dtype)


def _clip_ratio(r: Tensor, low: float, high: float | None) -> Tensor:
    return r.clamp(1 - low, 1 + (low if high is None else high))


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    clip_range: float | None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """0.5 max((V - G)^2, (V_old + clip(V - V_old) - G)^2) per token: [B, T] -> [B, T], 0 on masked
    entries.

    From OpenAI baselines; not in the PPO paper. The maximum is the pessimistic choice. Without a
    `clip_range`: plain squared error. Gradients flow through `values` only.

    Args:
        values: [B, T], of the value function.
        old_values: [B, T], of the value function that measured the rollouts.
        returns: [B, T], what the values should be.
        clip_range: How far a value may move from its old one; None: no bound.
        mask: [B, T]: true for tokens that count; None: all.
    """
    check_shapes(values=values, old_values=old_values, returns=returns)
    v, old, target = (
        zero_masked(widen(x), mask) for x in (values, old_values.detach(), returns.detach())
    )
    loss = (v - target) ** 2
    if clip_range is not None:
        # If the clipped error is larger, the value gets no gradient: it has moved too far already.
        loss = torch.maximum(loss, (old + (v - old).clamp(-clip_range, clip_range) - target) ** 2)
    return 0.5 * loss


def value_clipped(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    clip_range: float | None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """1 for tokens whose value gradient the clipping removes, else 0: [B, T] -> [B, T].

    These are the tokens at which the clipped value has the larger error.

    Args:
        values: [B, T], of the value function.
        old_values: [B, T], of the value function that measured the rollouts.
        returns: [B, T], what the values should be.
        clip_range: How far a value may move from its old one; None: no bound.
        mask: [B, T]: true for tokens that count; None: all.
    """
    with torch.no_grad():
        v, old, target = (zero_masked(widen(x), mask) for x in (values, old_values, returns))
        limit = math.inf if clip_range is None else clip_range
        outside = (v - old).abs() > limit
        larger = (old + (v - old).clamp(-limit, limit) - target).abs() > (v - target).abs()
        # Inside the range, old + (v - old) may differ from v by rounding, which must not count.
        return (outside & larger).to(v.dtype)
