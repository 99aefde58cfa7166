"""Policies ranked by pairwise comparisons: win rates, Elo, Bradley-Terry, and their relation to gaps in reward.

A game is `(a, b, score)`: two policies and the first one's score, which is 1 for a win, 0.5 for a tie, 0 for a loss,
or a judge's probability. Rank the games of different judges separately.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar

from alignkit import seeds
from alignkit.evaluation import statistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alignkit.evaluation.statistics import Share

Policy = TypeVar("Policy", bound=Hashable)
Game = tuple[Policy, Policy, float]
REPETITIONS = 2000  # of a bootstrap
ELO_PER_NAT = 400 / math.log(10)


class WinRate(TypedDict):
    """How often one policy beat another, with ties counted in three ways; None if no game counts."""

    wins: int
    losses: int
    ties: int
    ties_half: Share | None
    ties_excluded: Share | None
    ties_lost: Share | None


def win_rate(scores: Sequence[float]) -> WinRate:
    """The win rate of a policy against another, from its scores: 1, 0.5 or 0.

    Pass one score per prompt, because the intervals assume independent draws. Raises `ValueError` for other scores.
    """
    for number, score in enumerate(scores):
        if score not in (0, 0.5, 1):
            raise ValueError(f"score {number} must be 1 (won), 0.5 (tied) or 0 (lost), not {score!r}")
    wins, ties, n = sum(score == 1 for score in scores), sum(score == 0.5 for score in scores), len(scores)
    return {
        "wins": wins,
        "losses": n - wins - ties,
        "ties": ties,
        "ties_half": statistics.share(wins + ties / 2, n),
        "ties_excluded": statistics.share(wins, n - ties),
        "ties_lost": statistics.share(wins, n),
    }


def win_probability(gap: float) -> float:
    """P(first beats second) if it leads by `gap` nats of reward or Bradley-Terry strength (Bradley and Terry 1952)."""
    from scipy.special import expit

    return float(expit(gap))


def elo_gap(gap: float) -> float:
    """A gap in nats as Elo points, 173.7 per nat (Bai et al. 2022, arXiv:2204.05862, on preference models)."""
    return ELO_PER_NAT * gap


def elo(
    games: Iterable[tuple[Policy, Policy, float]],
    policies: Iterable[Policy] = (),
    *,
    k: float = 32.0,
    initial: float = 1000.0,
    scale: float = 400.0,
) -> dict[Policy, float]:
    """Elo ratings after playing the games in order; `policies` are rated even without a game.

    k: points at stake in a game. scale: the lead that makes the odds 10 to 1.

    The order of the games affects the ratings, which suits chess players, whose strength changes. To rank fixed
    policies, use `bradley_terry`, which treats all games alike.
    """
    ratings = dict.fromkeys(policies, float(initial))
    for a, b, score in _checked(games):
        lead = ratings.setdefault(a, float(initial)) - ratings.setdefault(b, float(initial))
        gain = k * (score - win_probability(lead * math.log(10) / scale))
        ratings[a] += gain
        ratings[b] -= gain
    return ratings


def tally(games: Iterable[tuple[Policy, Policy, float]]) -> dict[tuple[Policy, Policy], float]:
    """How often each policy beat each other one: (winner, loser) -> wins. A tie is half a win for both."""
    wins: dict[tuple[Policy, Policy], float] = {}
    for a, b, score in _checked(games):
        wins[a, b] = wins.get((a, b), 0.0) + score
        wins[b, a] = wins.get((b, a), 0.0) + 1 - score
    return wins


def bradley_terry(wins: Mapping[tuple[Policy, Policy], float], *, ridge: float = 0.0) -> dict[Policy, float]:
    """Strengths in nats with mean 0, best first, by maximum likelihood (Zermelo 1929; Bradley and Terry 1952).

    They maximize `sum of wins[a, b] * log sigma(s[a] - s[b]) - ridge / 2 * sum of s**2`. `elo_gap` converts them to
    Elo points.

    Without a ridge, the maximum exists if, in every division of the policies into two sides, each side has beaten the
    other (Ford 1957, "Solution of a ranking problem from binary comparisons"). Otherwise a `ValueError` names the
    policies that are infinitely better or were never compared. With a ridge, these have strengths, too, but only the
    ridge determines the distance between policies that no games connect.
    """
    import numpy as np

    policies = list(dict.fromkeys(policy for pair in wins for policy in pair))
    if not policies:
        raise ValueError("ranking needs at least one comparison")
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number of at least 0, not {ridge!r}")
    index = {policy: number for number, policy in enumerate(policies)}
    table = np.zeros((len(policies), len(policies)))
    for (winner, loser), count in wins.items():
        if winner == loser:
            raise ValueError(f"{winner!r} is compared with itself")
        if not (math.isfinite(count) and count >= 0):
            raise ValueError(
                f"the wins of {winner!r} over {loser!r} must be a finite number of at least 0, not {count!r}"
            )
        table[index[winner], index[loser]] = count
    if not ridge:
        _check_finite(table, policies)
    (strengths,) = _most_likely(table[None], ridge)
    order = np.argsort(-strengths.round(9), kind="stable")  # the last digits do not separate equally strong policies
    return {policies[number]: float(strengths[number]) for number in order}


class Strength(TypedDict):
    """A strength in nats, relative to the mean of all policies, and its 95% interval; `n` prompts with games."""

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

    games: those of each prompt. Prompts are drawn again with all their games, because the games of one prompt are not
    independent (Efron 1979, "Bootstrap methods: another look at the jackknife"; percentiles of 2,000 repetitions).
    ridge: as in `bradley_terry`, above 0, because a repetition may lack the only defeat of a policy. seed, stream: name
    the random numbers. Raises `ValueError` without a game or a ridge.
    """
    import numpy as np

    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge must be a finite number above 0, not {ridge!r}")
    played = [list(_checked(row)) for row in games if row]
    if not played:
        raise ValueError("ranking needs at least one comparison")
    index = {policy: number for number, policy in enumerate(policies)}
    tables = np.zeros((len(played), len(index), len(index)))  # wins at each prompt [prompts, winner, loser]
    for table, row in zip(tables, played, strict=True):
        for a, b, score in row:
            table[index[a], index[b]] += score
            table[index[b], index[a]] += 1 - score
    n = len(played)
    draws = seeds.stream(seed, "ranking", stream).multinomial(n, np.full(n, 1 / n), size=REPETITIONS)
    again = np.tensordot(draws, tables, axes=1)
    (found,) = _most_likely(tables.sum(0)[None], ridge)
    spread = _most_likely(again, ridge)
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
            raise ValueError(f"game {number}: the score must be between 0 (lost) and 1 (won), not {score!r}")
        yield a, b, score


def _check_finite(table: NDArray[np.float64], policies: Sequence[Hashable]) -> None:
    """Raise `ValueError` unless every policy has beaten every other one, directly or through others."""
    from scipy.sparse.csgraph import connected_components

    for connection in ("weak", "strong"):
        count, part = connected_components(table > 0, connection=connection)
        if count == 1:
            continue
        groups = [[i for i in range(len(policies)) if part[i] == number] for number in range(count)]
        if connection == "weak":
            parts = "; ".join(_named(group, policies) for group in groups)
            raise ValueError(f"no game connects these policies: {parts}. Add games between them, or a ridge")
        best = next(group for group in groups if not table[part != part[group[0]]][:, group].any())
        others = [i for i in range(len(policies)) if i not in best]
        raise ValueError(
            f"{_named(others, policies)} never beat or tied {_named(best, policies)}, so the lead is infinite. "
            "Add games, or a ridge"
        )


def _named(group: Sequence[int], policies: Sequence[Hashable]) -> str:
    return ", ".join(str(policies[index]) for index in group)


def _most_likely(tables: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """The strengths [tables, policies] of several tables [tables, winner, loser] at once.

    There every policy wins as often as expected, i.e. the gradient of the likelihood is 0. Newton's method finds all
    digits. A minimizer would stop with half of them, because the likelihood is flat at its maximum. A step moves no
    policy by more than a nat, so that none overshoots.
    """
    import numpy as np
    from scipy.special import expit

    games, n = tables + tables.swapaxes(1, 2), tables.shape[1]
    anchor = games.sum((1, 2), keepdims=True) / n**2  # keeps means at 0; the likelihood depends on differences only
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
