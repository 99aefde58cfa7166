"""Policies ranked by pairwise comparisons: Bradley-Terry strengths, and their relation to gaps in
reward.

A game is `(a, b, score)`: two policies and the first one's score, which is 1 for a win, 0.5 for a
tie, 0 for a loss, or a judge's probability. Rank the games of different judges separately.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar

from alignkit import seeds
from alignkit.evaluation import statistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Policy = TypeVar("Policy", bound=Hashable)
Game = tuple[Policy, Policy, float]
REPETITIONS = 2000  # of a bootstrap
ELO_PER_NAT = 400 / math.log(10)


def win_probability(gap: float) -> float:
    """P(first beats second) if it leads by `gap` nats of reward or Bradley-Terry strength (Bradley
    and Terry 1952).
    """
    from scipy.special import expit

    return float(expit(gap))


def elo_gap(gap: float) -> float:
    """A gap in nats as Elo points, 173.7 per nat (Bai et al. 2022, arXiv:2204.05862, on preference
    models).
    """
    return ELO_PER_NAT * gap


class Strength(TypedDict):
    """A strength in nats, relative to the mean of all policies, and its 95% interval; `n` prompts
    with games.
    """

    mean: float
    low: float
    high: float
    n: int


def ranked(
    games: Sequence[Sequence[Game[Policy]]],
    policies: Sequence[Policy],
    *,
    ridge: float,
    seed: int,
    stream: str = "",
) -> dict[Policy, Strength]:
    """Bradley-Terry strengths of policies with bootstrap intervals.

    games: those of each prompt. Prompts are drawn again with all their games, because the games of
    one prompt are not independent (Efron 1979, "Bootstrap methods: another look at the jackknife";
    percentiles of 2,000 repetitions). ridge: as in `most_likely`, above 0, because a repetition may
    lack the only defeat of a policy. seed, stream: name the random numbers. Raises `ValueError`
    without a game or a ridge.
    """
    import numpy as np

    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge must be a finite number above 0, not {ridge!r}")
    played = [list(_checked(row)) for row in games if row]
    if not played:
        raise ValueError("ranking needs at least one comparison")
    index = {policy: number for number, policy in enumerate(policies)}
    # Wins at each prompt [prompts, winner, loser]
    tables = np.zeros((len(played), len(index), len(index)))
    for table, row in zip(tables, played, strict=True):
        for a, b, score in row:
            table[index[a], index[b]] += score
            table[index[b], index[a]] += 1 - score
    n = len(played)
    draws = seeds.stream(seed, "ranking", stream).multinomial(
        n, np.full(n, 1 / n), size=REPETITIONS
    )
    again = np.tensordot(draws, tables, axes=1)
    (found,) = most_likely(tables.sum(0)[None], ridge)
    spread = most_likely(again, ridge)
    tail = (1 - statistics.CONFIDENCE) / 2
    low, high = np.quantile(spread, [tail, 1 - tail], axis=0)
    return {
        policy: {"mean": float(found[i]), "low": float(low[i]), "high": float(high[i]), "n": n}
        for policy, i in index.items()
    }


def _checked(
    games: Iterable[tuple[Policy, Policy, float]],
) -> Iterable[tuple[Policy, Policy, float]]:
    for number, (a, b, score) in enumerate(games):
        if a == b:
            raise ValueError(f"game {number}: {a!r} plays against itself")
        if not 0 <= score <= 1:
            raise ValueError(
                f"game {number}: the score must be between 0 (lost) and 1 (won), not {score!r}"
            )
        yield a, b, score


def most_likely(tables: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Strengths in nats with mean 0 [tables, policies] of tables of wins [tables, winner, loser],
    float64.

    They maximize `sum of wins[a, b] * log sigma(s[a] - s[b]) - ridge / 2 * sum of s**2` (Zermelo
    1929; Bradley and Terry 1952). A tie is half a win for both. Without a ridge, the maximum exists
    if, in every division of the policies into two sides, each side has beaten the other (Ford 1957,
    "Solution of a ranking problem from binary comparisons"). With a ridge, only the ridge
    determines the distance between policies that no games connect. Raises `ValueError` if the
    likelihood is too flat.

    At the maximum every policy wins as often as expected, i.e. the gradient of the likelihood is 0.
    Newton's method finds all digits. A minimizer would stop with half of them, because the
    likelihood is flat at its maximum. A step moves no policy by more than a nat, so that none
    overshoots.
    """
    import numpy as np
    from scipy.special import expit

    games, n = tables + tables.swapaxes(1, 2), tables.shape[1]
    # Keeps means at 0; the likelihood depends on differences only
    anchor = games.sum((1, 2), keepdims=True) / n**2
    strengths = np.zeros((len(tables), n, 1))
    for _ in range(1000):
        gaps = strengths - strengths.swapaxes(1, 2)
        surprise = tables * expit(-gaps)  # wins times the probability of losing
        gradient = (surprise - surprise.swapaxes(1, 2)).sum(2, keepdims=True) - ridge * strengths
        gradient -= anchor * strengths.sum(1, keepdims=True)
        variance = games * expit(gaps) * expit(-gaps)
        curvature = (variance.sum(2, keepdims=True) + ridge) * np.eye(n) - variance + anchor
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            break
        if not np.isfinite(step).all():
            break
        strengths += step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))
        if np.abs(step).max() <= 1e-10:
            return strengths[:, :, 0]
    raise ValueError("the likelihood is too flat to find its maximum; add games, or a ridge")
