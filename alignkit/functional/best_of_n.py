"""The best of several responses: which to learn from, and the reward and KL of the best-of-n
policy.
"""

from __future__ import annotations

import math

from torch import Tensor

from alignkit.functional._tensors import widen


def raft_top(rewards: Tensor, count: int | None = None) -> Tensor:
    """Flat indices, ascending, of the `count` best of all P * K responses; by default P, i.e. the
    top 1/K.

    RAFT, Dong et al. 2023, the global variant: a prompt may get several or none. The lowest index
    wins ties.
    """
    order = rewards.flatten().argsort(descending=True, stable=True)
    return order[: len(rewards) if count is None else count].sort().values


def expected_best_of_n(rewards: Tensor, n: int) -> Tensor:
    """Unbiased estimate of E[max of n rewards] from K >= n samples: [P, K] -> [P].

    sum_i C(i, n-1) / C(K, n) r_(i) over the ascending order statistics. Raises `ValueError` unless
    1 <= n <= K.
    """
    k = rewards.shape[-1]
    if not 1 <= n <= k:
        raise ValueError(
            f"best of {n} cannot be estimated from {k} samples per prompt: n must be between 1 "
            f"and {k}"
        )
    ascending = widen(rewards).sort(-1).values
    # There are C(K, n) subsets, and r_(i) is the largest of C(i, n - 1) of them, because i rewards
    # are smaller (i from 0).
    weights = [math.comb(i, n - 1) / math.comb(k, n) for i in range(k)]
    return (ascending * ascending.new_tensor(weights)).sum(-1)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n nats: the highest KL of best-of-n from its base policy; less if rewards
    tie or answers have mass.

    Stiennon et al. 2020, appendix G.3; the bound: Beirami et al. 2024.
    """
    if n < 1:
        raise ValueError(f"n must be positive, not {n}")
    return math.log(n) - (n - 1) / n
