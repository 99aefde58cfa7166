"""A fall of gold from its best iteration."""

from __future__ import annotations

import numpy as np

from alignkit_plugins.monitors.reward_hacking import History


def by_prompt(mean: float, seed: int, spread: float = 0.3) -> dict[str, list[float]]:
    noise = np.random.default_rng(seed).normal(0, spread, 40)
    # Prompts differ far more than iterations
    return {str(n): [mean + n / 10 + float(noise[n])] for n in range(40)}


def test_gold_that_rises_and_falls() -> None:
    history = History(10)
    for number, mean in enumerate((0.0, 0.5, 1.0, 0.9, 0.95), 1):
        history.add(number, by_prompt(mean, number))
        assert not history.fell()
    history.add(6, by_prompt(0.5, 6))
    moved = history.change()
    assert history.fell() and history.best == 3 and moved is not None and -0.8 < moved.mean < -0.3


def test_an_iteration_without_a_score_says_nothing() -> None:
    history = History(3)
    history.add(1, {})
    assert history.best == 0 and not history.fell() and history.change() is None
    history.add(2, by_prompt(1.0, 0))
    history.add(3, {})
    assert history.best == 2 and not history.fell()


def test_luck_in_the_best_iteration_is_no_fall() -> None:
    """Ten iterations of the same policy: a plain interval would find a fall in a third of them."""
    falls = 0
    for seed in range(200):
        history = History(10)
        for number in range(10):
            history.add(number + 1, by_prompt(0.0, 1000 * seed + number))
            if history.fell():
                falls += 1
                break
    assert falls <= 20  # 5% of 200 are 10; P(more than 20) < 0.1%
