"""Held-out examples before the first step of a stage and after it: values, intervals, and what a
run says.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from alignkit.evaluation.held_out import compared, doubt, learned, values_of

UNEQUAL = {0: [2.0, 4.0], 1: [3.0, 3.0], 2: [0.0, 1.0], 3: [8.0, 10.0]}  # sums, weights


def test_values_have_the_ratio_of_sums_as_their_mean() -> None:
    """Parts of several processes in any order; the terms of a loss are added, and a term of some
    batches is its mean elsewhere. Values of equal weights are the scores themselves.
    """
    parts = [
        {"loss/nll": {2: UNEQUAL[2], 0: UNEQUAL[0]}},
        {"loss/nll": {1: UNEQUAL[1], 3: UNEQUAL[3]}},
    ]
    (values,) = values_of(parts).values()
    assert sum(values) / 4 == pytest.approx(13 / 18)
    center = {"loss/center": {place: [0.5, 1.0] for place in range(4)}}
    assert values_of([*parts, center])["loss"] == pytest.approx([value + 0.5 for value in values])
    whole = {"loss/nll": {place: [2.0, 2.0] for place in range(4)}}
    assert values_of([{**whole, "loss/extra": {1: [3.0, 6.0]}}])["loss"] == [1.5] * 4
    assert values_of([{"accuracy": {0: [1.0, 1.0], 1: [0.0, 1.0]}}]) == {"accuracy": [1.0, 0.0]}


def test_the_spread_of_the_values_is_that_of_the_ratio() -> None:
    """Against 2,000 draws of 200 examples, whose lengths differ by a factor of 50."""
    draw = random.Random(0)

    def sample() -> dict[int, list[float]]:
        lengths = [draw.randint(1, 50) for _ in range(200)]
        return {
            place: [sum(draw.random() < 0.3 for _ in range(n)), n]
            for place, n in enumerate(lengths)
        }

    ratios = []
    for _ in range(2000):
        sums = sample().values()
        ratios.append(sum(s for s, _ in sums) / sum(w for _, w in sums))
    middle = sum(ratios) / len(ratios)
    spread = (sum((ratio - middle) ** 2 for ratio in ratios) / len(ratios)) ** 0.5
    (values,) = values_of([{"accuracy": sample()}]).values()
    found = compared({"accuracy": values}, {"accuracy": values}, list(range(200)))["accuracy"][
        "result"
    ]
    assert (found["high"] - found["low"]) / 2 / 1.96 == pytest.approx(spread, rel=0.25)


def test_examples_of_one_conversation_are_one_draw() -> None:
    values = {"accuracy": [0.1, 0.9, 0.2, 0.8, 0.3, 0.7] * 10}
    alone = compared(values, values, list(range(60)))["accuracy"]["result"]
    together = compared(values, values, [place % 6 for place in range(60)])["accuracy"]["result"]
    assert alone["mean"] == together["mean"] == pytest.approx(0.5)
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])
    assert alone["n"] == together["n"] == 60


def test_an_interval_of_a_share_ends_at_its_bounds() -> None:
    values = values_of([{"accuracy": {0: [1.0, 1.0], 1: [60.0, 60.0], 2: [9.0, 10.0]}}])
    found = compared(values, values, [0, 1, 2])["accuracy"]["result"]
    assert found["low"] < found["mean"] < found["high"] == 1.0


def of(start: list[float], result: list[float], metric: str = "loss") -> dict[str, Any]:
    return {"held_out": compared({metric: start}, {metric: result}, list(range(len(start))))}


START = [2.0 + place / 40 for place in range(40)]
BETTER = [value - 0.3 - (place % 3) / 10 for place, value in enumerate(START)]
SAME = [value + (-1) ** place / 10 for place, value in enumerate(START)]
FELL, FLAT = [{"loss": 2.0 - place / 40} for place in range(40)], [{"loss": 2.0}] * 40


def test_the_line_of_a_stage_begins_with_what_it_learned() -> None:
    summary = {**of(START, BETTER), "groups": 30, "encoding": {}}
    (change,) = learned(summary, FELL)
    assert change.startswith("held-out loss 2.49 -> 2.09 [")
    ties = of([0.5] * 40, [1.0] * 30 + [0.0] * 10, "accuracy")
    assert learned(ties, FELL) == ["held-out accuracy 50% -> 75% [60, 86]"]
    assert learned({}, [{"reward": 0.5}, {"reward": -0.25}])[0].startswith(
        "reward 0.5 -> -0.25 on the prompts"
    )


@pytest.mark.parametrize(
    ("summary", "rows", "said"),
    [
        (of(START, BETTER), FELL, ""),
        (of(START, SAME), FELL, "learned nothing measurable; it fits its training data only"),
        (of(START, SAME), FLAT, "40 steps are few: raise epochs"),
        (of(START, SAME), FLAT * 2, "raise learning_rate"),
        (of(BETTER, START), FLAT, "got worse (loss)"),
        (of([0.5] * 40, [1.0] * 33 + [0.0] * 7, "accuracy"), FLAT, ""),
        ({}, FELL, ""),
        ({}, [{"reward": 0.0}] * 6, "its reward is 0 in every iteration"),
        ({}, [{"reward": value} for value in (0.1, 0.2) * 5], "does not rise measurably"),
        ({}, [{"reward": value} for value in (*(0.1, 0.2) * 3, *(0.8, 0.9) * 3)], ""),
        ({}, [{"reward": place / 10} for place in range(12)], ""),
        ({}, [{"reward": 0.1}, {"reward": 0.1}], ""),
    ],
)
def test_a_stage_that_learned_nothing_says_what_to_change(
    summary: Any, rows: Any, said: str
) -> None:
    found = doubt(summary, rows)
    assert said in found and bool(found) == bool(said)


def test_a_few_changed_conversations_are_no_finding() -> None:
    """Three of four that happen to change alike look certain to a t test."""
    start, result = {"accuracy": [0.0] * 8}, {"accuracy": [1.0] * 6 + [0.0] * 2}
    found = compared(start, result, [place // 2 for place in range(8)])["accuracy"]["difference"]
    assert found["p"] == pytest.approx(0.25) and found["mean"] == pytest.approx(0.75)
