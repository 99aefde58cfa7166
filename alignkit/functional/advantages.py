"""From scores to advantages: penalties and KL rewards, GAE, returns, and baselines within a group
of responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, nearly_equal, widen, zero_masked
from alignkit.functional.kl import KL_ESTIMATORS
from alignkit.functional.reductions import last_index


def missing_eos_penalty(
    scores: Tensor, has_eos: Tensor, penalty: float | None = None, replace: float | None = None
) -> Tensor:
    """Scores [B] in which responses without an end token lose `penalty`, or score `replace`
    instead.

    Returns the scores unchanged if neither is set. Raises `ValueError` if both are.
    """
    check_shapes(scores=scores, has_eos=has_eos)
    if penalty is not None and replace is not None:
        raise ValueError("set penalty or replace, not both")
    if replace is not None:
        return torch.where(has_eos, scores, torch.full_like(scores, replace))
    return scores if penalty is None else torch.where(has_eos, scores, scores - penalty)


def overlong_penalty(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """0 up to max_length - cache, then linearly down to -1 at max_length and beyond: [N] -> [N].
    DAPO, eq. (13).

    Args:
        lengths: [N], in tokens.
        max_length: The length from which the penalty is -1, in tokens.
        cache: The number of tokens before it over which the penalty grows.
    """
    return ((max_length - cache - widen(lengths)) / cache).clamp(-1.0, 0.0)


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    kl_coefficient: float,
    *,
    score_clip: float | None = None,
    estimator: str = "k1",
) -> Tensor:
    """-kl_coefficient * KL on each response token, plus the score [B] on the final token: -> [B,
    T], no gradient.

    InstructGPT 2022, eq. (2), per token as in Stiennon et al. 2020. The score is first clipped to
    +-score_clip. Masked tokens get 0. Raises `ValueError` unless the estimator is k1, k2 or k3.

    Args:
        scores: [B].
        logprobs: [B, T], in nats, of the policy.
        reference_logprobs: [B, T], in nats, of the reference.
        mask: [B, T]: true for tokens that count.
        kl_coefficient: Reward per nat.
        score_clip: The bound of a score; None: no bound.
        estimator: How the KL is estimated.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"the KL estimator must be {', '.join(KL_ESTIMATORS)}, not {estimator!r}")
    check_shapes(logprobs=logprobs, mask=mask)
    last = last_index(mask)
    check_shapes(scores=scores, mask_rows=last)
    with torch.no_grad():
        if score_clip is not None:
            scores = scores.clamp(-score_clip, score_clip)
        # A penalty, so negative if the policy gives a token more probability than the reference.
        rewards = -kl_coefficient * KL_ESTIMATORS[estimator](logprobs, reference_logprobs, mask)
        positions = torch.arange(mask.shape[-1], device=mask.device)
        # [B, T]. A row without tokens has -1, which is no position, and so pays no score.
        final = positions == last.unsqueeze(-1)
        return rewards + zero_masked(widen(scores).unsqueeze(-1).expand(final.shape), final)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, without gradients: rewards, values, mask [B, T] ->
    (advantages, returns) [B, T].

    delta_t = r_t + gamma V_next - V_t,  A_t = delta_t + gamma lam A_next,  returns = A + V

    This is eq. (16) of Schulman et al. 2016. `next` is the next valid token, however many masked
    ones lie between. `bootstrap` [B] is the value after the last token: 0 for an episode that ended
    (the default), V of the next state for a truncated one.

    Args:
        rewards: [B, T], of tokens.
        values: [B, T], of the value function.
        mask: [B, T]: true for tokens that count.
        gamma: The discount per token.
        lam: 0 trusts the values, 1 the returns.
        bootstrap: [B], the value after the last token; None: 0.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    with torch.no_grad():
        valid = mask.bool()
        rewards, values = widen(rewards), widen(values)
        advantage = rewards.new_zeros(len(rewards))
        # Zeros: nothing follows the end
        next_value = advantage if bootstrap is None else bootstrap.to(rewards)
        check_shapes(mask_rows=advantage, bootstrap=next_value)
        columns = []
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + gamma * next_value - values[:, t]
            # A masked position leaves both as they are: what comes before it continues with the
            # valid token after it.
            advantage = torch.where(valid[:, t], delta + gamma * lam * advantage, advantage)
            next_value = torch.where(valid[:, t], values[:, t], next_value)
            columns.append(advantage)
        # Columns were collected from the end. Masked ones hold the advantage of the token after
        # them.
        advantages = zero_masked(torch.stack(columns[::-1], dim=1), valid) if columns else rewards
        return advantages, zero_masked(advantages + values, valid)


def reinforce_returns(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """score - kl_coefficient * (KL from this token to the end): scores [B], kl [B, T] -> [B, T].

    REINFORCE++, Hu 2025.

    Args:
        scores: [B].
        kl: [B, T], in nats.
        mask: [B, T]: true for tokens that count.
        kl_coefficient: Reward per nat.
    """
    # A cumulative sum from the right, the token itself included.
    remaining = zero_masked(widen(kl), mask).flip(-1).cumsum(-1).flip(-1)
    return zero_masked(widen(scores).unsqueeze(-1) - kl_coefficient * remaining, mask)


# --- baselines within a group: `group_index` [N] holds the same number for all responses of one
# group


def group_mean(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Mean reward of each response's group: rewards [N], group_index [N] -> [N]."""
    check_shapes(rewards=rewards, group_index=group_index)
    inverse = torch.unique(group_index, return_inverse=True)[1]
    rewards = widen(rewards)
    sums = rewards.new_zeros(len(rewards)).index_add(0, inverse, rewards)
    sizes = torch.bincount(inverse, minlength=len(rewards)).clamp(min=1)
    return (sums / sizes)[inverse]


def group_size(group_index: Tensor) -> Tensor:
    """Number of responses in each response's group: [N] -> [N]."""
    inverse, counts = torch.unique(group_index, return_inverse=True, return_counts=True)[1:]
    sizes: Tensor = counts[inverse]
    return sizes


def group_has_spread(rewards: Tensor, group_index: Tensor) -> Tensor:
    """True if the rewards of a response's group differ by more than rounding, so that it teaches
    something: [N] -> [N].

    DAPO, Yu et al. 2025. A nan counts as spread, so that it reaches the loss and is noticed.

    Args:
        rewards: [N], one per response.
        group_index: [N]: the same number for all responses of one group.
    """
    check_shapes(rewards=rewards, group_index=group_index)
    inverse = torch.unique(group_index, return_inverse=True)[1]
    start = torch.zeros_like(rewards)
    highest = start.scatter_reduce(0, inverse, rewards, "amax", include_self=False)
    lowest = start.scatter_reduce(0, inverse, rewards, "amin", include_self=False)
    return ~nearly_equal(highest, lowest)[inverse]


def centered_advantages(rewards: Tensor, group_index: Tensor) -> Tensor:
    """r - mean of the group: [N] -> [N], exactly 0 without spread. Dr. GRPO, Liu et al. 2025.

    Args:
        rewards: [N], one per response.
        group_index: [N]: the same number for all responses of one group.
    """
    deviations = widen(rewards) - group_mean(rewards, group_index)
    # Equal rewards may differ from their mean by rounding, which a division by the deviation would
    # blow up.
    return torch.where(group_has_spread(rewards, group_index), deviations, 0.0)


def slope_within_groups(rewards: Tensor, x: Tensor, group_index: Tensor) -> Tensor:
    """Least-squares slope of rewards [N] in x [N], with an intercept for each group: a scalar, 0 if
    x does not vary.

    Only differences within a group count ("within estimator"), so a group whose members are all
    long says nothing.
    """
    check_shapes(rewards=rewards, x=x, group_index=group_index)
    deviations = centered_advantages(x, group_index)
    squares = (deviations**2).sum()
    # Deviations of x sum to 0 in every group, so the rewards need not be centered.
    return (deviations * widen(rewards)).sum() / torch.where(squares > 0, squares, 1.0)


def std_within_groups(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Standard deviation of rewards [N] around their groups' means, pooled and unbiased: a scalar,
    0 without spread.
    """
    free = len(rewards) - torch.unique(group_index).numel()
    return (centered_advantages(rewards, group_index) ** 2).sum().div(max(1, free)).sqrt()


def grpo_advantages(
    rewards: Tensor, group_index: Tensor, unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    """Advantages of GRPO: (r - mean) / (std + eps) within each group, [N] -> [N].

    Shao et al. 2024, section 4.1.2.

    The paper specifies neither the divisor of the variance nor eps; both matter when a group hardly
    varies.

    Args:
        rewards: [N], of responses.
        group_index: [N], the group of each response.
        unbiased: Divide by n - 1 in the standard deviation.
        eps: Added to the standard deviation.
    """
    centered = centered_advantages(rewards, group_index)
    size = group_size(group_index)
    # `group_mean` divides by K; the factor makes that K - 1 if the variance is to be unbiased.
    variance = group_mean(centered**2, group_index) * size / (size - int(unbiased)).clamp(min=1)
    return centered / (variance.sqrt() + eps)


def rloo_advantages(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Advantages of RLOO: r - mean of the *other* members of the group, [N] -> [N].

    Ahmadian et al. 2024.

    Args:
        rewards: [N], of responses.
        group_index: [N], the group of each response.
    """
    size = group_size(group_index)
    # r - mean of the others = (r - mean of all) K / (K - 1).
    return centered_advantages(rewards, group_index) * size / (size - 1).clamp(min=1)


def maxrl_advantages(rewards: Tensor, group_index: Tensor) -> Tensor:
    """(r - mean) / mean within the group, for rewards of 0 or more: [N] -> [N], 0 without spread.

    MaxRL, Tajwar et al. 2026: with rewards of 0 and 1, 1/K for each of K right responses, minus a
    baseline. Its expected gradient is that of log p, the probability of a right response, cut after
    as many powers of 1 - p as the group has other members.

    Args:
        rewards: [N], one per response.
        group_index: [N]: the same number for all responses of one group.
    """
    mean = group_mean(rewards, group_index)
    return centered_advantages(rewards, group_index) / torch.where(mean > 0, mean, 1.0)
