"""What a metric does as a number grows, over prompts and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.table import table_of
from alignkit_plugins.cells.trends import numbers_of, slope, trend, turn
from benchmarks.tables import Setting, drawn
from tests.cells.test_table import ALL, HALF, made, shifted
from tests.rows import cells

RATES = {"slow": 1e-4, "middle": 2e-4, "fast": 1e-3}


def test_slopes_are_those_of_least_squares() -> None:
    values, at = np.random.default_rng(3).normal(size=(4, 6, 3)), [1.0, 2.0, 5.0, 7.0]
    found = slope(values, at)
    for prompt in range(6):
        for seed in range(3):
            by_hand = np.polyfit(at, values[:, prompt, seed], 1)[0]
            assert found[prompt, seed] == pytest.approx(by_hand)


def test_the_interval_is_of_the_slopes_over_prompts_and_seeds() -> None:
    """A metric that gains 0.1 for each doubling, on which prompts and seeds agree but for noise."""
    noise = np.random.default_rng(4).normal(0, 0.02, (3, 30, 4))
    grid = {name: 0.1 * np.log2(rate) + noise[k] for k, (name, rate) in enumerate(RATES.items())}
    (said,) = trend(grid, RATES, "learning_rate", "J", False)
    at = np.log2([*RATES.values()])
    found = crossed.parts(slope(np.stack([*grid.values()]), list(at)))
    half = float(crossed.half_width(crossed.spread(found)))
    low, high = float(found.mean) - half, float(found.mean) + half
    assert 0.09 < low < 0.1 < high < 0.11
    ends = f"+{float(found.mean):.3f} [{low:.3f}, {high:.3f}]"
    assert said == f"J rises: {ends} for each doubling of learning_rate, not adjusted"
    (down,) = trend({name: -own for name, own in grid.items()}, RATES, "rate", "J", False)
    assert down.startswith("J falls: -0.1")
    (flat,) = trend({name: noise[1] for name in RATES}, RATES, "rate", "J", False)
    assert flat.startswith("J has no clear trend")
    narrow = dict(zip(grid, (1.0, 2.0, 3.0), strict=True))
    (linear,) = trend(grid, narrow, "epochs", "J", False)
    assert linear.startswith("J rises: +0.168") and "for each 1 more of epochs" in linear
    assert not [*trend({name: own[:, :1] for name, own in grid.items()}, RATES, "r", "J", False)]


# Cells, seeds, prompts, rate, and standard deviations by seed and by prompt
EQUAL = (
    Setting(4, 3, 40, 0.1, 0.09, 0.05),
    Setting(8, 5, 40, 0.5, 0.03, 0.2),
    Setting(8, 5, 40, 0.5, 0.2, 0.0),
)


def turns(values: np.ndarray, lower: bool = False) -> list[str]:
    """What is said of values [cells, prompts, seeds] at 0, 1, and so on."""
    grid = {str(place): own for place, own in enumerate(values)}
    return [*turn(grid, {name: float(name) for name in grid}, "epochs", "J", True, lower)]


@pytest.mark.parametrize("setting", EQUAL)
def test_equal_cells_seldom_turn(setting: Setting) -> None:
    """Also if seeds vary much, which all prompts of a seed share."""
    tables = drawn(setting._replace(cells=setting.cells + 1), 400, np.random.default_rng(5))[:, 0]
    assert sum("turns" in turns(one)[0] for one in tables) / 400 <= 0.05


@pytest.mark.parametrize(("lower", "ends"), [(False, "+-"), (True, "-+")])
def test_a_planted_turn_is_found_and_what_only_rises_or_falls_has_none(
    lower: bool, ends: str
) -> None:
    setting, at = Setting(6, 5, 100, 0.5, 0.03, 0.05), np.arange(5.0)
    tables = drawn(setting, 40, np.random.default_rng(6))[:, 0]
    up, down = ends

    def said(shape: np.ndarray) -> str:
        sign = -1 if lower else 1
        return "\n".join(turns(one + sign * shape[:, None, None], lower)[0] for one in tables)

    hill = said(0.3 - 0.15 * abs(at - 2))
    assert hill.count("J turns at epochs=2 (chosen by half of the prompts with the other") > 30
    assert f"seeds: 2 5x): {up}" in hill and f"up to it, {down}" in hill and "there to 4" in hill
    for shape in (0.15 * abs(at - 2), 0.1 * at, -0.1 * at):
        assert "turns" not in said(shape)


def test_a_turn_needs_four_values_and_three_seeds() -> None:
    values = np.zeros((4, 8, 3))
    assert turns(values) and not any(map(turns, (values[1:], values[:, :3], values[..., 1:])))


NUMBERS = """
    1 2 3         | 3
    0.1 0.1 0.3   | 0
    1 2           | 0
    1 2 ppo       | 0
    1 2 nan       | 0
"""


@pytest.mark.parametrize(("values", "known"), cells(NUMBERS))
def test_a_trend_needs_three_numbers(values: str, known: str) -> None:
    variants = [{"seed": "3", "rate": value} for value in values.split()]
    found = numbers_of(variants, "seed").get("rate", {})
    assert len(found) == int(known)
    assert not numbers_of([{**one, "epochs": "1"} for one in variants], "seed")


def test_a_table_says_it() -> None:
    every = made({"0": HALF, "1": shifted, "2": ALL, "3": ALL})
    notes = "\n".join(table_of(every, "report").notes)
    assert "right rises: +20 points [" in notes
    assert "right has no clear turning point in algorithm" in notes
    words = [one for one in every if one["values"]["algorithm"] in ("0", "1")]
    assert "for each" not in "\n".join(table_of(words, "report").notes)
