"""The trend of metrics while a stage runs: what it claims, how often it is wrong, and what it leaves out."""

import random

import pytest
from scipy import stats

from alignkit.io.progress import LEAST, Trend, change_of


def trend(total: int, **metrics: list[float]) -> str:
    found = Trend(total)
    for values in zip(*metrics.values(), strict=True):
        found.add(dict(zip(metrics, values, strict=True)))
    return found.text()


def test_a_clear_change_has_its_size_and_sign_and_others_are_said_to_be_unclear() -> None:
    noise = [0.1 * (-1) ** at for at in range(20)]
    text = trend(
        60,
        **{
            "loss": noise,
            "reward": [0.01 * at + 0.1 * small for at, small in enumerate(noise)],
            "kl": [0.2 * at for at in range(20)],
            "response_tokens": [500.0 - 13 * at for at in range(20)],
            "grad_norm": [float(at) for at in range(20)],
        },
    )
    assert text == "change over the last 20: reward +0.19, kl +3.8, length -247; none clear in loss"


def test_too_few_steps_have_no_trend() -> None:
    assert trend(60, loss=[1.0, 0.9, 0.8, 0.7, 0.6]) == "" and LEAST == 6
    assert trend(60, loss=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]) == "change over the last 6: -0.5"
    assert Trend(10).text() == ""


@pytest.mark.parametrize(("total", "window"), [(1, 20), (200, 20), (1000, 100), (5000, 200)])
def test_a_trend_is_about_a_tenth_of_a_stage_within_limits(total: int, window: int) -> None:
    rising_then_falling = [*(float(at) for at in range(300)), *(300.0 - at for at in range(window))]
    assert trend(total, reward=rising_then_falling) == f"change over the last {window}: {1 - window:+d}"


def test_a_value_that_never_changes_or_is_not_finite_is_no_trend() -> None:
    assert trend(60, kl=[0.0] * 8) == "change over the last 8: none clear in kl"
    assert trend(60, loss=[float("nan")] * 3 + [1.0, 2.0, float("inf"), 3.0, 4.0, 5.0, 6.0]) == (
        "change over the last 6: +5"
    )


@pytest.mark.parametrize("size", [1e160, 1.7e308])
def test_values_whose_squares_are_no_numbers_do_not_end_the_run(size: float) -> None:
    values = [size, -size, size, -size, -size, size, 0.0]
    assert trend(60, loss=values) == "change over the last 7: none clear in loss"


@pytest.mark.parametrize("count", [6, 20, 200])
def test_noise_is_rarely_taken_for_a_trend(count: int) -> None:
    drawn = random.Random(7)
    claims = sum(
        "none clear" not in trend(10 * count, reward=[drawn.gauss(0, 1) for _ in range(count)]) for _ in range(400)
    )
    assert 0.02 * 400 <= claims <= 0.08 * 400  # 5% are expected, with a standard deviation of 1.1%


def test_the_change_and_its_error_are_those_of_a_regression() -> None:
    drawn = random.Random(3)
    values = [0.3 * at + drawn.gauss(0, 2) for at in range(15)]
    line = stats.linregress(range(15), values)
    assert change_of(values) == pytest.approx((14 * line.slope, 14 * line.stderr))
