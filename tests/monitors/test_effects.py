"""Slopes within prompts: against a regression with prompt dummies, and free of prompts' difficulty."""

from __future__ import annotations

import numpy as np
import pytest

from alignkit_monitors.estimates import FEWEST, Effects


def made(seed: int, prompts: int = 40, samples: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [answers, 2], a score that follows the first by 2, and prompts whose difficulty runs against it."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(prompts, dtype=float), samples)
    difficulty = np.repeat(rng.normal(0, 5, prompts), samples)
    x = rng.normal(0, 1, (prompts * samples, 2)) + difficulty[:, None]
    return x, 2 * x[:, 0] - 9 * difficulty + rng.normal(0, 1, len(groups)), groups


def by_dummies(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Slope and clustered standard error of a regression with a dummy for each prompt, one feature at a time."""
    count = len(np.unique(groups))
    design = np.column_stack([x, np.eye(count)[groups.astype(int)]])
    inverse = np.linalg.pinv(design.T @ design)
    residuals = y - design @ (inverse @ design.T @ y)
    scores = np.stack([design[groups == g].T @ residuals[groups == g] for g in range(count)])
    covariance = inverse @ (scores.T @ scores) @ inverse * count / (count - 1)
    return float((inverse @ design.T @ y)[0]), float(np.sqrt(covariance[0, 0]))


def test_slopes_are_those_of_a_regression_with_a_dummy_for_each_prompt() -> None:
    from scipy import stats

    x, y, groups = made(0)
    effects = Effects(["reward"])
    effects.add(["first", "second"], x, {"reward": y}, groups.tolist())
    slopes, lows, highs = effects.slopes("reward", ["first", "second"], 0.05)
    for column in range(2):
        slope, error = by_dummies(x[:, column], y, groups)
        half = stats.t.ppf(0.975, 39) * error
        assert (slopes[column], lows[column], highs[column]) == pytest.approx((slope, slope - half, slope + half))
    assert lows[0] < 2 < highs[0] and lows[1] < 0 < highs[1]


def test_looks_add_up_even_with_other_features() -> None:
    x, y, groups = made(1)
    half = len(y) // 2
    whole, parts = Effects(["reward"]), Effects(["reward"])
    whole.add(["first"], x[:, :1], {"reward": y}, groups.tolist())
    parts.add(["first"], x[:half, :1], {"reward": y[:half]}, groups[:half].tolist())
    parts.add(["new", "first"], x[half:, ::-1], {"reward": y[half:]}, groups[half:].tolist())
    for one, other in zip(
        whole.slopes("reward", ["first"], 0.05), parts.slopes("reward", ["first"], 0.05), strict=True
    ):
        assert one == pytest.approx(other)


def test_a_score_of_its_own_has_slopes_of_its_own() -> None:
    x, y, groups = made(2)
    effects = Effects(["reward", "gold"])
    effects.add(["first"], x[:, :1], {"reward": y, "gold": -3 * y}, groups.tolist())
    assert effects.slopes("gold", ["first"], 0.05)[0] == pytest.approx(
        -3 * effects.slopes("reward", ["first"], 0.05)[0]
    )


@pytest.mark.parametrize(("prompts", "known"), [(FEWEST - 1, False), (FEWEST, True)])
def test_few_prompts_say_nothing(prompts: int, known: bool) -> None:
    x, y, groups = made(3, prompts)
    effects = Effects(["reward"])
    effects.add(["first"], x[:, :1], {"reward": y}, groups.tolist())
    assert np.isfinite(effects.slopes("reward", ["first"], 0.05)[0][0]) == known


def test_a_feature_that_never_varies_within_a_prompt_says_nothing() -> None:
    _, y, groups = made(4)
    effects = Effects(["reward"])
    effects.add(["of the prompt"], groups[:, None] / 3, {"reward": y}, groups.tolist())
    assert np.isnan(effects.slopes("reward", ["of the prompt"], 0.05)[0][0])


def test_a_prompt_that_comes_back_is_no_new_prompt() -> None:
    """The same prompts in every look, whose slopes differ: their mean is as uncertain as the prompts are few."""
    false = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        slopes, effects = np.repeat(rng.normal(0, 1, 40), 2), Effects(["reward"])
        for _ in range(10):
            x = rng.normal(0, 1, 80)
            effects.add(["first"], x[:, None], {"reward": slopes * x}, np.repeat(np.arange(40), 2).tolist())
        _, low, high = effects.slopes("reward", ["first"], 0.05)
        false += bool(low[0] > 0 or high[0] < 0)
    assert false <= 12  # 5 are expected; with a new prompt in every look, more than 30


def test_the_same_answers_twice_are_no_more_certain() -> None:
    x, y, groups = made(5)
    once, twice = Effects(["reward"]), Effects(["reward"])
    for effects in (once, twice, twice):
        effects.add(["first"], x[:, :1], {"reward": y}, groups.tolist())
    for one, other in zip(once.slopes("reward", ["first"], 0.05), twice.slopes("reward", ["first"], 0.05), strict=True):
        assert one == pytest.approx(other)
