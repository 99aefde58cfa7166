"""Policies ranked by comparisons of their answers: win rates, Elo, Bradley-Terry; what a gap in reward is worth.

A game is `(a, b, score)`: two policies and the score of the first, 1 for a win, 0.5 for a tie, 0 for a loss, or a
judge's probability. Games of different judges belong in different rankings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar

from alignkit import statistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alignkit.statistics import Share

Policy = TypeVar("Policy", bound=Hashable)
ELO_PER_NAT = 400 / math.log(10)


class WinRate(TypedDict):
    """How often one of two policies won, by the three ways to count ties; None of no game, or none decided."""

    wins: int
    losses: int
    ties: int
    ties_half: Share | None
    ties_excluded: Share | None
    ties_lost: Share | None


def win_rate(scores: Sequence[float]) -> WinRate:
    """From a policy's scores against one other (1, 0.5 or 0); one score a prompt, as intervals count them as draws."""
    for number, score in enumerate(scores):
        if score not in (0, 0.5, 1):
            raise ValueError(f"score {number} is {score!r}, not 1 (won), 0.5 (tied) or 0 (lost)")
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
    """That of the better one, `gap` nats of reward or Bradley-Terry strength ahead (Bradley and Terry 1952)."""
    from scipy.special import expit

    return float(expit(gap))


def elo_gap(gap: float) -> float:
    """Elo points that `gap` nats are worth: 173.7 each (Bai et al. 2022, arXiv:2204.05862, on preference models)."""
    return ELO_PER_NAT * gap


def elo(
    games: Iterable[tuple[Policy, Policy, float]],
    policies: Iterable[Policy] = (),
    *,
    k: float = 32.0,
    initial: float = 1000.0,
    scale: float = 400.0,
) -> dict[Policy, float]:
    """Elo ratings after the games, one after the other; `policies` are rated even without a game.

    k: points at stake in a game. scale: points that make the odds 10 to 1.

    The order of the games changes the ratings, and no policy grows between them as a chess player may: to rank
    policies that stay as they are, `bradley_terry` uses all games alike.
    """
    ratings = dict.fromkeys(policies, float(initial))
    for a, b, score in _checked(games):
        ahead = ratings.setdefault(a, float(initial)) - ratings.setdefault(b, float(initial))
        won = k * (score - win_probability(ahead * math.log(10) / scale))
        ratings[a] += won
        ratings[b] -= won
    return ratings


def tally(games: Iterable[tuple[Policy, Policy, float]]) -> dict[tuple[Policy, Policy], float]:
    """How often a policy beat another: (winner, loser) -> wins, a tie being half a win for both."""
    wins: dict[tuple[Policy, Policy], float] = {}
    for a, b, score in _checked(games):
        wins[a, b] = wins.get((a, b), 0.0) + score
        wins[b, a] = wins.get((b, a), 0.0) + 1 - score
    return wins


def bradley_terry(wins: Mapping[tuple[Policy, Policy], float], *, ridge: float = 0.0) -> dict[Policy, float]:
    """Strengths in nats with mean 0, best first, by maximum likelihood (Zermelo 1929; Bradley and Terry 1952): the
    maximum over s of `sum of wins[a, b] * log sigma(s[a] - s[b])`. `elo_gap` turns them into Elo points.

    ridge: `ridge / 2 * sum of s**2` is taken off. Without it the maximum exists if, however the policies are divided in
    two, each side has beaten the other (Ford 1957, "Solution of a ranking problem from binary comparisons"); a
    `ValueError` says who is infinitely better than whom, or was never compared. With it these have strengths too, but
    policies that no games connect are then apart by nothing but the ridge.
    """
    import numpy as np

    policies = list(dict.fromkeys(policy for pair in wins for policy in pair))
    if not policies:
        raise ValueError("there are no comparisons")
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be at least 0, not {ridge!r}")
    place = {policy: index for index, policy in enumerate(policies)}
    table = np.zeros((len(policies), len(policies)))
    for (winner, loser), count in wins.items():
        if winner == loser:
            raise ValueError(f"{winner!r} is compared with itself")
        if not (math.isfinite(count) and count >= 0):
            raise ValueError(f"{winner!r} cannot have beaten {loser!r} {count!r} times")
        table[place[winner], place[loser]] = count
    if not ridge:
        _check_finite(table, policies)
    strengths = _most_likely(table, ridge)
    return {policies[index]: float(strengths[index]) for index in np.argsort(-strengths, kind="stable")}


def _checked(
    games: Iterable[tuple[Policy, Policy, float]],
) -> Iterable[tuple[Policy, Policy, float]]:
    for number, (a, b, score) in enumerate(games):
        if a == b:
            raise ValueError(f"game {number}: {a!r} plays against itself")
        if not 0 <= score <= 1:
            raise ValueError(f"game {number}: the score is {score!r}, not between 0 (lost) and 1 (won)")
        yield a, b, score


def _check_finite(table: NDArray[np.float64], policies: Sequence[Hashable]) -> None:
    """Raises `ValueError` unless everybody has beaten everybody else, if by way of others."""
    from scipy.sparse.csgraph import connected_components

    for connection in ("weak", "strong"):
        count, part = connected_components(table > 0, connection=connection)
        if count == 1:
            continue
        groups = [[i for i in range(len(policies)) if part[i] == number] for number in range(count)]
        if connection == "weak":
            told = "; ".join(_named(group, policies) for group in groups)
            raise ValueError(f"nothing compares these with each other: {told}. Add games between them, or a ridge")
        best = next(group for group in groups if not table[part != part[group[0]]][:, group].any())
        others = [i for i in range(len(policies)) if i not in best]
        raise ValueError(
            f"{_named(others, policies)} never won or tied against {_named(best, policies)}, which would be infinitely "
            f"better. Add games, or a ridge"
        )


def _named(group: Sequence[int], policies: Sequence[Hashable]) -> str:
    return ", ".join(str(policies[index]) for index in group)


def _most_likely(table: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """The strengths at which everybody wins as often as expected: there the gradient of the likelihood is 0.

    Solved as equations: a minimiser stops where the likelihood, flat at its maximum, changes no more, half the digits
    away.
    """
    import numpy as np
    from scipy.optimize import root
    from scipy.special import expit

    n, games = len(table), table + table.T
    anchor = games.sum() / n**2  # holds the mean at 0, where the likelihood does not care

    def gradient(strengths: NDArray[np.float64]) -> NDArray[np.float64]:
        lost = table * expit(strengths - strengths[:, None])  # wins that were surprises, as far as they were
        return lost.sum(0) - lost.sum(1) + ridge * strengths + anchor * strengths.sum()

    def curvature(strengths: NDArray[np.float64]) -> NDArray[np.float64]:
        gaps = strengths[:, None] - strengths
        each = games * expit(gaps) * expit(-gaps)
        return np.diag(each.sum(1)) - each + ridge * np.eye(n) + anchor

    found = root(gradient, np.zeros(n), jac=curvature, tol=1e-10)
    if not found.success:
        raise ValueError("the likelihood is too flat for its maximum to be found; add games, or a ridge")
    strengths: NDArray[np.float64] = found.x
    return strengths
