"""Beyond the known answers of tests/golden: closed forms, undefined rankings, and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alignkit.evaluation import statistics
from alignkit.evaluation.ranking import elo_gap, most_likely, ranked, win_probability


def strengths_of(wins: dict[tuple[Any, Any], float], ridge: float = 0.0) -> dict[Any, float]:
    names = sorted({name for pair in wins for name in pair})
    table = np.array([[wins.get((winner, loser), 0.0) for loser in names] for winner in names])
    return dict(zip(names, most_likely(table[None], ridge)[0].tolist(), strict=True))


# Bradley-Terry


def test_a_tie_is_half_a_win_for_both() -> None:
    found = ranked(
        [[("a", "b", score)] for score in (1, 0, 0, 0, 0, 0.5, 0.5)], ["a", "b"], ridge=1e-9, seed=0
    )
    assert found["b"]["mean"] == pytest.approx(math.log(5 / 2) / 2) == -found["a"]["mean"]


@pytest.mark.parametrize("odds", [2.0, 1e3, 1e6])
def test_a_chain_of_policies_to_the_last_digits(odds: float) -> None:
    """If games form no circle, each gap is the log of the odds of its pair; here the ends are far
    apart.
    """
    wins = {
        pair: count for i in range(19) for pair, count in (((i, i + 1), odds), ((i + 1, i), 1.0))
    }
    found = strengths_of(wins)
    assert [found[i] - found[i + 1] for i in range(19)] == pytest.approx(
        [math.log(odds)] * 19, rel=1e-9
    )
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)


def test_a_circle_of_wins_is_a_tie() -> None:
    circle = strengths_of({("a", "b"): 1, ("b", "c"): 1, ("c", "a"): 1})
    assert circle == pytest.approx({"a": 0, "b": 0, "c": 0}, abs=1e-12)


@pytest.mark.parametrize("ridge", [1e-9, 0.3, 1e6])
def test_a_ridge_limits_policies_that_always_win(ridge: float) -> None:
    """For two policies, the derivative with respect to the winner's strength s is sigma(-2 s) -
    ridge s.
    """
    found = strengths_of({("a", "b"): 1.0}, ridge=ridge)
    assert found["a"] == -found["b"] > 0
    assert win_probability(-2 * found["a"]) == pytest.approx(ridge * found["a"], rel=1e-9)


def test_a_ridge_centers_groups_that_never_met() -> None:
    wins = {("a", "b"): 3.0, ("b", "a"): 1.0, ("c", "d"): 9.0, ("d", "c"): 3.0}
    found = strengths_of(wins, ridge=1e-6)
    assert found["a"] + found["b"] == pytest.approx(0, abs=1e-9) == found["c"] + found["d"]
    assert (
        found["c"] - found["d"] == pytest.approx(math.log(3), abs=1e-5) == found["a"] - found["b"]
    )


@pytest.mark.parametrize(
    "wins",
    [
        {("a", "b"): 1.0},
        {("a", "b"): 1.0, ("b", "a"): 2.0, ("b", "c"): 1.0},
        {("a", "b"): 1e15, ("b", "a"): 1e-3},
    ],
)
def test_undefined_strengths(wins: Any) -> None:
    with pytest.raises(ValueError, match="too flat"):
        strengths_of(wins)


@pytest.mark.parametrize(
    ("game", "reason"),
    [
        (("a", "a", 1), "game 1: 'a' plays against itself"),
        (("a", "b", 1.5), "game 1: the score must be .*, not 1.5"),
        (("a", "b", -1), "game 1: the score must be .*, not -1"),
        (("a", "b", math.nan), "game 1: the score must be .*, not nan"),
    ],
)
def test_invalid_games(game: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ranked([[("a", "b", 1), game]], ["a", "b"], ridge=0.1, seed=0)


# Shares


@pytest.mark.parametrize("n", [1, 3, 10, 178, 1000])
def test_shares_near_0_and_1(n: int) -> None:
    for hits in {0, 1, n - 1, n}:
        found = statistics.share(hits, n)
        interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (found["low"], found["high"]) == pytest.approx(
            (interval.low, interval.high), rel=1e-12, abs=1e-15
        )
        assert (found["low"] == 0) == (hits == 0) and (found["high"] == 1) == (hits == n)


# Gaps


@pytest.mark.parametrize("gap", [-20.0, -1.0, 0.0, 0.3, 5.0])
def test_elo_points_of_a_gap_have_its_probability(gap: float) -> None:
    assert win_probability(gap) == pytest.approx(1 / (1 + 10 ** (-elo_gap(gap) / 400)), rel=1e-12)


def test_gaps_of_any_size() -> None:
    assert (win_probability(-1e4), win_probability(1e4)) == (0, 1)
    assert win_probability(-40) == pytest.approx(math.exp(-40))


# --- with intervals


def star(p: float, n: int) -> list[list[tuple[str, str, float]]]:
    wins = round(p * n)
    return [[("ppo", "sft", float(i < wins))] for i in range(n)]


def test_two_policies_have_the_log_odds_of_the_win_rate() -> None:
    found = ranked(star(0.75, 400), ["sft", "ppo"], ridge=1e-6, seed=1)
    gap = found["ppo"]["mean"] - found["sft"]["mean"]
    assert gap == pytest.approx(math.log(3), abs=1e-4) and found["ppo"]["n"] == 400
    # The delta method: the log odds vary by 1 / (n p (1 - p)), and each policy has half of the gap.
    half = 1.96 * math.sqrt(1 / (400 * 0.75 * 0.25)) / 2
    assert found["ppo"]["high"] - found["ppo"]["mean"] == pytest.approx(half, rel=0.15)
    assert found["ppo"]["mean"] - found["ppo"]["low"] == pytest.approx(half, rel=0.15)


def test_games_of_a_prompt_are_drawn_together() -> None:
    alone = ranked(star(0.75, 100), ["sft", "ppo"], ridge=0.1, seed=1)["ppo"]
    copies = ranked([row * 4 for row in star(0.75, 100)], ["sft", "ppo"], ridge=0.4, seed=1)["ppo"]
    assert copies["n"] == 100  # four copies of a prompt are no more prompts
    assert copies["high"] - copies["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-6)


def test_intervals_of_three_policies_cover_their_strengths() -> None:
    rng = np.random.default_rng(3)
    truth = {"a": 0.7, "b": 0.0, "c": -0.7}
    covered = 0
    for repetition in range(40):
        games = [
            [
                (x, y, float(rng.random() < win_probability(truth[x] - truth[y])))
                for x, y in ("ab", "bc", "ac")
            ]
            for _ in range(80)
        ]
        found = ranked(games, list(truth), ridge=1e-3, seed=repetition)
        covered += sum(found[name]["low"] <= truth[name] <= found[name]["high"] for name in truth)
    # 95%; three standard errors of 40 independent runs are 10 points, less here
    assert 0.88 <= covered / 120 <= 1.0


def test_one_that_always_wins_is_finite_with_a_ridge() -> None:
    found = ranked([[("a", "b", 1.0)]] * 20, ["a", "b"], ridge=0.1, seed=0)
    assert 1 < found["a"]["mean"] < 10 and found["a"]["low"] == found["a"]["high"] == pytest.approx(
        found["a"]["mean"]
    )


@pytest.mark.parametrize(
    ("games", "ridge", "said"), [([], 0.1, "at least one"), ([[("a", "b", 1.0)]], 0.0, "above 0")]
)
def test_rankings_that_cannot_be(
    games: list[list[tuple[str, str, float]]], ridge: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ranked(games, ["a", "b"], ridge=ridge, seed=0)
