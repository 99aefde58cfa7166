"""Held-out examples before the first step of a stage and after it: values, intervals, and what a
run says.
"""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.evaluation.held_out import compared, doubt, learned, values_of

UNEQUAL = {0: [2.0, 4.0], 1: [3.0, 3.0], 2: [0.0, 1.0], 3: [8.0, 10.0]}  # sums, weights


def test_values_have_the_ratio_of_sums_as_their_mean_and_its_spread() -> None:
    """It is linearized. Parts of several processes in any order; the terms of a loss are added, and
    a term of some batches is its mean elsewhere. Values of equal weights are the scores themselves.
    """
    parts = [
        {"loss/nll": {2: UNEQUAL[2], 0: UNEQUAL[0]}},
        {"loss/nll": {1: UNEQUAL[1], 3: UNEQUAL[3]}},
    ]
    (values,) = values_of(parts).values()
    mean, weight = 13 / 18, 18 / 4
    linear = [mean + (total - mean * own) / weight for total, own in UNEQUAL.values()]
    assert values == pytest.approx(linear) and sum(values) / 4 == pytest.approx(mean)
    center = {"loss/center": {place: [0.5, 1.0] for place in range(4)}}
    assert values_of([*parts, center])["loss"] == pytest.approx([value + 0.5 for value in values])
    whole = {"loss/nll": {place: [2.0, 2.0] for place in range(4)}}
    assert values_of([{**whole, "loss/extra": {1: [3.0, 6.0]}}])["loss"] == [1.5] * 4
    shares = {"accuracy": {1000: [1.0, 1.0], 3: [0.0, 1.0]}, "accuracy/easy": {3: [1.0, 1.0]}}
    assert values_of([shares]) == {"accuracy": [0.0, 1.0]}
    silent = {"loss/nll": {0: [2.0, 2.0]}, "loss/extra": {0: [0.0, 0.0]}}
    assert values_of([silent]) == {"loss": [1.0]}


def test_examples_of_one_conversation_are_one_draw() -> None:
    """Three of four conversations that happen to change alike look certain to a t test."""
    start, result = {"accuracy": [0.0] * 8}, {"accuracy": [1.0] * 6 + [0.0] * 2}
    both = compared(start, result, [place // 2 for place in range(8)])
    found = both["accuracy"]
    # The t interval of 1, 1, 1 and 0
    difference = {"mean": 0.75, "low": -0.0456116, "high": 1.5456116, "n": 4, "p": 0.25}
    assert found["difference"] == pytest.approx(difference) and both["examples"] == 8
    assert found["result"]["mean"] == pytest.approx(0.75)
    alone = compared(start, result, list(range(8)))["accuracy"]["result"]
    assert found["result"]["low"] < alone["low"] - 0.1 and found["result"]["n"] == 4


def test_an_interval_of_a_share_ends_at_its_bounds() -> None:
    values = values_of([{"accuracy": {0: [1.0, 1.0], 1: [60.0, 60.0], 2: [9.0, 10.0]}}])
    found = compared(values, values, [0, 1, 2])["accuracy"]["result"]
    assert found["low"] < found["mean"] < found["high"] == 1.0


def of(start: list[float], result: list[float], metric: str = "loss") -> dict[str, Any]:
    return {"held_out": compared({metric: start}, {metric: result}, list(range(len(start))))}


START = [2.0 + place / 40 for place in range(40)]
BETTER = [value - 0.3 - (place % 3) / 10 for place, value in enumerate(START)]
SAME = [value + (-1) ** place / 10 for place, value in enumerate(START)]
LEANING = [0.5] * 20, [1.0] * 13 + [0.0] * 7
FELL, FLAT = [{"loss": 2.0 - place / 40} for place in range(40)], [{"loss": 2.0}] * 40


def two(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """With the metrics of both."""
    return {"held_out": {**one["held_out"], **other["held_out"]}}


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss": value} for value in values]


def test_the_line_of_a_stage_begins_with_what_it_learned() -> None:
    summary = {**of(START, BETTER), "groups": 30, "encoding": {}}
    assert learned(summary, FELL) == ["held-out loss 2.49 -> 2.09 [1.99, 2.19]"]
    ties = of([0.5] * 40, [1.0] * 30 + [0.0] * 10, "accuracy")
    assert learned(ties, FELL) == ["held-out accuracy 50% -> 75% [60, 86]"]
    narrow = of(START, [2.1 + place % 2 / 100 for place in range(40)])
    assert learned(two(narrow, ties), FELL)[1:] == ["loss 2.4875 -> 2.1050 [2.1034, 2.1066]"]
    assert learned({}, [{"reward": "NaN"}, {"reward": 0.5}, {"reward": -0.25}])[0].startswith(
        "reward 0.5 -> -0.25 on the prompts"
    )


@pytest.mark.parametrize(
    ("summary", "rows", "said"),
    [
        (of(START, BETTER), FELL, ""),
        (of(START, SAME), FELL, "learned nothing measurable; it fits its training data only"),
        (of(START, SAME), FLAT, "40 steps are few: raise epochs"),
        (of(START, SAME), FLAT * 2, "raise learning_rate"),
        (of(START, SAME), (FLAT * 2)[:50], "raise learning_rate"),
        # Of ten steps, the means of the first two and of the last two
        (of(START, SAME), losses(2, 2, 2, 2, 2, 2, 2, 2, 2, 1.85), "10 steps are few"),
        (of(START, SAME), losses(2, 2, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.85, 1.85), "it fits its"),
        (of([2.0], [2.0]), FLAT, "1 held-out example is too few to say anything"),
        (of(START[:19], BETTER[:19]), FLAT, "19 held-out examples are too few to say anything"),
        (of(BETTER, START), FLAT, "got worse (loss); it fits its training data only"),
        (two(of(START, BETTER), of(*LEANING, "accuracy")), FELL, ""),
        (two(of(START, SAME), of(*LEANING, "accuracy")), FELL, "learned nothing measurable"),
        (of(*LEANING, "accuracy"), FELL, "has no clear gain; hold out"),
        # 0.05 of 20, 0.44 standard errors: its p value is 0.67, so it hardly leans
        (of([0.5] * 20, [1.0] * 11 + [0.0] * 9, "accuracy"), FELL, "learned nothing measurable"),
        (of([0.5] * 40, [1.0] * 33 + [0.0] * 7, "accuracy"), FLAT, ""),
        ({}, FELL, ""),
    ],
)
def test_a_stage_that_learned_nothing_says_what_to_change(
    summary: Any, rows: Any, said: str
) -> None:
    """rows: of metrics.jsonl, or their rewards."""
    found = doubt(summary, [row if isinstance(row, dict) else {"reward": row} for row in rows])
    assert said in found and bool(found) == bool(said)
