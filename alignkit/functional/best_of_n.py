"""The best of several responses: which to learn from, and the reward and KL of the best-of-n policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, widen

# [P, K], or a list for each prompt, in which None marks a response without a reward.
Rewards = Tensor | Sequence[Sequence[float | None]]


def best_of(rewards: Rewards) -> tuple[Tensor, Tensor]:
    """(index [P], reward [P]) of the best of K responses to each prompt; the first one wins ties.

    Llama 2 2023, section 3.2.3. None and nan are never chosen. A prompt without any reward has index -1 and reward nan.
    """
    table = _reward_table(rewards)
    if table.shape[1] == 0:
        return torch.full((len(table),), -1), table.new_full((len(table),), math.nan)
    missing = table.isnan()
    index = table.masked_fill(missing, -math.inf).argmax(-1)
    # Finite rewards beat a missing one, but -inf only ties with it.
    index = torch.where(missing.gather(1, index[:, None])[:, 0], (~missing).int().argmax(-1), index)
    reward = table.gather(1, index[:, None])[:, 0]
    return torch.where(missing.all(-1), -1, index), reward


def _reward_table(rewards: Rewards) -> Tensor:
    """[P, K], padded with nan; nan also marks a response without a reward."""
    if isinstance(rewards, Tensor):
        return widen(rewards)
    rows = [[math.nan if r is None else float(r) for r in row] for row in rewards]
    width = max((len(row) for row in rows), default=0)
    padded = [row + [math.nan] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.float64).view(len(rows), width)


def best_so_far(iterations: Sequence[Rewards]) -> tuple[Tensor, Tensor, Tensor]:
    """(iteration [I, P], index [I, P], reward [I, P]): each prompt's best response over iterations 0..i.

    Llama 2 2023, section 3.2.3: keeping the best of all earlier iterations prevents regressions. The earliest wins
    ties. Iterations may differ in K, but not in P; a prompt may have no rewards in some of them. Iteration and index
    are -1 until a prompt has a reward. Raises `ValueError` without iterations.
    """
    if not iterations:
        raise ValueError("the best response so far needs at least one iteration")
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, rewards in enumerate(iterations):
        index, reward = best_of(rewards)
        iteration = torch.where(index < 0, -1, number)
        if rows:
            old_iteration, old_index, old_reward = rows[-1]
            check_shapes(earlier_prompts=old_reward, prompts=reward)
            newer = (reward > old_reward) | (old_reward.isnan() & ~reward.isnan())
            iteration = torch.where(newer, iteration, old_iteration)
            index, reward = torch.where(newer, index, old_index), torch.where(newer, reward, old_reward)
        rows.append((iteration, index, reward))
    best_iterations, indices, best_rewards = (torch.stack(column) for column in zip(*rows, strict=True))
    return best_iterations, indices, best_rewards


def raft_top(rewards: Tensor, count: int | None = None) -> Tensor:
    """Flat indices, ascending, of the `count` best of all P * K responses; by default P, i.e. the top 1/K.

    RAFT, Dong et al. 2023, the global variant: a prompt may get several or none. The lowest index wins ties.
    """
    order = rewards.flatten().argsort(descending=True, stable=True)
    return order[: len(rewards) if count is None else count].sort().values


def expected_best_of_n(rewards: Tensor, n: int) -> Tensor:
    """Unbiased estimate of E[max of n rewards] from K >= n samples: [P, K] -> [P].

    sum_i C(i, n-1) / C(K, n) r_(i) over the ascending order statistics. Raises `ValueError` unless 1 <= n <= K.
    """
    k = rewards.shape[-1]
    if not 1 <= n <= k:
        raise ValueError(f"best of {n} cannot be estimated from {k} samples per prompt: n must be between 1 and {k}")
    ascending = widen(rewards).sort(-1).values
    weights = [math.comb(i, n - 1) / math.comb(k, n) for i in range(k)]
    return (ascending * ascending.new_tensor(weights)).sum(-1)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n nats: KL of best-of-n from its base policy; an upper bound if rewards tie.

    Stiennon et al. 2020, appendix G.3; the bound: Beirami et al. 2024.
    """
    if n < 1:
        raise ValueError(f"n must be positive, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_distribution(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Exact policy of best-of-n over a finite set of responses: base policy [V], rewards [V] -> [V].

    P(reward <= r)^n - P(reward < r)^n, divided among equal rewards by their base probability.
    """
    check_shapes(probs=probs, rewards=rewards)
    level = torch.unique(rewards, return_inverse=True)[1]
    mass = widen(probs).new_zeros(len(probs)).index_add(0, level, widen(probs))
    up_to = mass.cumsum(0)
    chosen = up_to**n - (up_to - mass).clamp(min=0) ** n
    share = torch.where(mass > 0, chosen / mass.clamp(min=torch.finfo(mass.dtype).tiny), 0.0)
    return widen(probs) * share[level]
