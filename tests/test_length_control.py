"""The length-controlled win rate against AlpacaEval's own program, and its error against
simulations.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from alignkit_plugins.evaluate.length_control import length_controlled

# What alpaca_eval 0.6.6 says, with scikit-learn 1.8, of the data that `data` draws: seed, prompts,
# soft preferences, effect of length, whether difficulty counts -> percent.
KNOWN = {
    (0, 100, False, 1.0, False): 66.48441330595304,
    (1, 97, True, 0.8, False): 59.56118872988835,
    (2, 300, False, 2.5, True): 55.83455285224234,
    (3, 40, False, 0.0, False): 72.57034512781246,
}


def data(
    seed: int, n: int, soft: bool, slope: float, hard: bool
) -> tuple[list[float], list[float], list[float] | None]:
    rng = np.random.default_rng(seed)
    theirs = np.exp(rng.normal(6, 0.5, n)).astype(int)
    ours = np.exp(rng.normal(6.3, 0.6, n)).astype(int)
    difficulty = rng.normal(0, 1, n)
    p = expit(0.4 + slope * np.tanh((ours - theirs) / 300) - (0.7 * difficulty if hard else 0))
    preferences = p if soft else (rng.random(n) < p).astype(float)
    if not soft:
        preferences[::17] = 0.5
    return preferences.tolist(), (ours - theirs).tolist(), difficulty.tolist() if hard else None


@pytest.mark.parametrize("drawn", KNOWN)
def test_it_is_alpaca_evals(drawn: tuple[int, int, bool, float, bool]) -> None:
    found = length_controlled(*data(*drawn))
    assert found is not None and found["n"] == drawn[1]
    # Points; the requirement is 0.1
    assert 100 * found["mean"] == pytest.approx(KNOWN[drawn], abs=0.01)


def test_without_a_difference_in_length_it_is_the_win_rate() -> None:
    preferences = [1.0] * 30 + [0.0] * 10
    found = length_controlled(preferences, [0.0] * 40)
    assert found is not None
    assert found["mean"] == pytest.approx(0.75, abs=0.01)  # the penalty moves it a little
    assert found["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 40), rel=0.03)


def test_the_standard_error_is_the_spread_of_repetitions() -> None:
    rng = np.random.default_rng(5)
    rates, errors = [], []
    for _ in range(60):
        gap = rng.normal(0.5, 1, 120)
        wins = (rng.random(120) < expit(0.5 + np.tanh(gap))).astype(float)
        found = length_controlled(wins.tolist(), gap.tolist())
        assert found is not None
        rates.append(found["mean"])
        errors.append(found["standard_error"])
    # 60 repetitions know it to 9%
    assert np.mean(errors) == pytest.approx(np.std(rates, ddof=1), rel=0.3)
    assert np.mean(rates) == pytest.approx(expit(0.5), abs=0.03)  # not the win rate, which is 0.68


def test_too_few_prompts_and_wrong_numbers() -> None:
    assert length_controlled([1.0, 0.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]) is None
    with pytest.raises(ValueError, match="same prompts"):
        length_controlled([1.0] * 6, [1.0] * 5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        length_controlled([1.5] * 6, [1.0] * 6)
