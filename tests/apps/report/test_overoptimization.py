"""Gao et al.'s curve is found again in points that follow it, and not in noise."""

import math
import random

import pytest
from made import align_rows

from alignkit_apps.report import overoptimization


def test_the_point_of_over_optimization_is_found() -> None:
    """The rewards follow d (2 - b log d) + 1 with the peak at d = 2, so KL = 4; see `align_rows`."""
    drawn = overoptimization.training("align", align_rows())
    assert drawn is not None and drawn[1] is not None
    figure, fit = drawn
    assert fit["start"] == pytest.approx(1, abs=1e-6)
    assert fit["alpha"] == pytest.approx(2, abs=1e-6)
    assert fit["beta"] == pytest.approx(2 / (1 + math.log(2)), abs=1e-6)
    assert fit["peak_kl"] == pytest.approx(4, rel=1e-5) and fit["passed"]
    assert fit["peak_reward"] == pytest.approx(1 + 2 * (2 - fit["beta"] * math.log(2)), rel=1e-5)
    assert "is highest at a KL of 4 nats" in fit["sentence"] and figure["note"] == fit["sentence"]
    assert [series["style"] for series in figure["series"]] == ["points", "fit"]


def test_a_reward_that_only_rises_has_no_such_point() -> None:
    d = [0.2 * at for at in range(1, 15)]
    fit = overoptimization.fitted("align", "gold", [x * x for x in d], [0.5 * x for x in d])
    assert fit is not None and not fit["passed"] and "no sign of over-optimization" in fit["sentence"]


def test_noise_is_not_taken_for_a_peak() -> None:
    """In 200 runs without any effect, few claim a peak that was passed."""
    stream, claims = random.Random(1), 0
    for _ in range(200):
        kl = [0.1 * at for at in range(1, 21)]
        fit = overoptimization.fitted("align", "gold", kl, [stream.gauss(0, 1) for _ in kl])
        claims += bool(fit and fit["passed"])
    assert claims <= 12  # 2.5% at each end would be 5


@pytest.mark.parametrize("kl", [[0.0] * 20, [1.0] * 20, [0.1, 0.2, 0.3], [], [-1.0] * 20])
def test_too_few_different_points_have_no_fit(kl: list[float]) -> None:
    assert overoptimization.fitted("align", "gold", kl, [1.0] * len(kl)) is None


def test_evaluated_policies_are_points_with_intervals() -> None:
    def policy(kl: float, mean: float) -> dict[str, object]:
        return {"kl": {"mean": kl}, "rewards": {"gold": {"mean": mean, "low": mean - 1, "high": mean + 1}}}

    summary = {
        "rewards": ["gold"],
        "policies": {"b": policy(4.0, 2.0), "a": policy(1.0, 1.0), "base": policy(-0.1, 0.0)},
    }
    ((figure, fit),) = overoptimization.evaluated("report", summary)
    (series,) = figure["series"]
    assert series["x"] == [0.0, 1.0, 2.0] and series["y"] == [0.0, 1.0, 2.0] and series["labels"] == ["base", "a", "b"]
    assert series["low"] == [-1.0, 0.0, 1.0] and fit is None


def gold_rows(golds: list[float]) -> list[dict[str, float]]:
    """Iterations whose KL is the square of their number, and whose reward rises by 2 each."""
    return [
        {"step": n, "kl": float(n * n), "reward": 2.0 * n, "reward_std": 4.0, "gold": gold, "gold_std": 0.5}
        for n, gold in enumerate(golds, 1)
    ]


def test_gold_and_reward_are_drawn_as_gains_in_their_own_deviations() -> None:
    figure = overoptimization.gold("align", gold_rows([1.0, 1.5, 2.0, 1.25]))
    assert figure is not None
    reward, gold = figure["series"]
    assert reward["name"] == "reward" and gold["name"] == "gold"
    assert reward["x"] == gold["x"] == [1.0, 2.0, 3.0, 4.0]
    assert reward["y"] == [0.0, 0.5, 1.0, 1.5] and gold["y"] == [0.0, 1.0, 2.0, 0.5]
    assert figure["marks"] == [3.0]
    assert figure["note"] == (
        "gold was highest in iteration 3, at a KL of 9 nats; since then gold changed by -1.5 and the reward by +0.5 "
        "deviations"
    )


def test_gold_that_still_rises_is_not_over_optimized() -> None:
    figure = overoptimization.gold("align", gold_rows([1.0, 1.5, 2.0]))
    assert figure is not None and figure["note"].endswith("the last one: no over-optimization so far")


def test_iterations_without_gold_are_left_out_and_two_are_too_few() -> None:
    rows = gold_rows([1.0, 1.5, 2.0, 2.5])
    del rows[1]["gold"]
    figure = overoptimization.gold("align", rows)
    assert figure is not None and figure["series"][1]["y"] == [0.0, 2.0, 3.0]
    del rows[2]["gold"]
    assert overoptimization.gold("align", rows) is None
    assert overoptimization.gold("align", [{"step": 1, "kl": 1.0, "reward": 2.0}]) is None
