"""The rows of an evaluation, and the verdict that they give: clear only by what a policy did not
learn from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from alignkit.evaluation.statistics import paired_difference
from alignkit_plugins.compare.rows import (
    ANSWERS,
    BASE_MODEL,
    KL,
    LENGTH,
    TRUNCATED,
    Row,
    adjusted,
    main_rows,
    plain,
    rows_of,
)
from alignkit_plugins.compare.tables import comparisons, details, table
from alignkit_plugins.compare.verdicts import (
    LONGER_IS_BETTER,
    PAIRS,
    SHORTER_IS_BETTER,
    Verdict,
    verdicts,
)

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
MEASURES = ("refused", "refused in vain")


def estimate(
    triple: tuple[float, float, float] | None, middle: float = 0.0, p: float | None = None
) -> dict[str, Any]:
    """p: by default, clear of any number of others where the interval excludes the middle."""
    mean, low, high = triple or (None, None, None)
    if p is None:
        p = 0.3 if low is None or high is None or low <= middle <= high else 1e-6
    return {"mean": mean, "low": low, "high": high, "n": 20, "p": p}


def summary(own: dict[str, bool | None], **scores: Any) -> list[Row]:
    """The rows of align against sft. scores: differences by metric; `_` stands for a blank."""
    rows = []
    for at, (name, triple) in enumerate(scores.items()):
        metric = name.replace("_", " ")
        better = {"percent": metric in MEASURES, "lower": metric == "refused in vain"}
        kind = "metric" if metric in MEASURES else "reward"
        sft = Row("sft", metric, kind, {"mean": 0.4, "n": 20}, **better)
        align = replace(sft, policy="align", estimate={"mean": 0.7, "n": 20}, baseline="sft")
        decides = metric in own or metric in MEASURES or (not own and at == 0)
        align = replace(align, trained_on=own.get(metric), tested=decides)
        rows += [sft, replace(align, difference=estimate(triple))]
    return rows


def judged(rows: list[Row], triple: tuple[float, float, float], own: bool = False) -> list[Row]:
    """With a judge's preference of align."""
    preference = estimate(triple, 0.5)
    gap = {end: preference[end] - 0.5 for end in ("mean", "low", "high")} | {"p": preference["p"]}
    facts = {"percent": True, "trained_on": own, "tested": True}
    return [*rows, Row("align", "judge", "judge", preference, "sft", gap, **facts)]


def verdict(rows: list[Row], policy: str = "align") -> Verdict:
    return next(one for one in verdicts(adjusted(rows)) if one.policy == policy)


def text(rows: list[Row]) -> str:
    return " ".join(verdict(rows).sentences)


IN_VAIN = {"refused": False, "refused in vain": False}


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        (
            summary({"refused": False, "llama2": True}, refused=UP, llama2=UP),
            "gained",
            "align is better than sft in refused, +30 points [20, 40]: 70% against 40%. "
            "Also better: the reward llama2 (trained on it), +0.30 [0.20, 0.40].",
        ),
        (
            summary({"llama2": True}, llama2=UP),
            "gained by its own reward",
            "align is better than sft in the reward llama2 (trained on it), +0.30 [0.20, 0.40]: "
            "0.70 against 0.40. It was trained on this reward or chosen by it, so this is no "
            "independent proof.",
        ),
        (
            summary({"helpful": None}, helpful=UP),
            "gained, not verified",
            "It is not known whether it was trained on this, so this may be no independent proof.",
        ),
        (
            summary({"llama2": True, "refused": False}, llama2=UP, refused=UNCLEAR),
            "nothing clear",
            "No clear difference between align and sft in refused, +10 points [-10, 30]. More "
            "examples or more training may show one. Also better: the reward llama2 (trained on "
            "it), +0.30 [0.20, 0.40].",
        ),
        (
            summary({"llama2": True, "refused": False}, llama2=UP, refused=DOWN),
            "lost",
            "align is worse than sft in refused, -30 points [-40, -20]: 70% against 40%.",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=UP),
            "mixed",
            "Worse: refused in vain (lower is better), +30 points [20, 40].",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=DOWN),
            "gained",
            "Also better: refused in vain (lower is better), -30 points [-40, -20].",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR),
            "gained",
            "No clear difference in refused in vain.",
        ),
        (
            summary({"refused in vain": False}, refused_in_vain=DOWN),
            "gained",
            "better than sft in refused in vain (lower is better), -30 points [-40, -20]: 70% "
            "against 40%.",
        ),
        (
            summary({"refused": False, "llama2": True}, refused=UP, llama2=DOWN),
            "mixed",  # a loss counts whoever says it
            "Worse: the reward llama2 (trained on it), -0.30 [-0.40, -0.20].",
        ),
        (
            summary({"refused": False}, refused=None),
            "unknown",
            "align and sft cannot be compared: no prompt has a score for both.",
        ),
        (
            judged(summary({"llama2": True}, llama2=UP), (0.7, 0.6, 0.8)),
            "gained",
            "align is better than sft in judge, which prefers it in 70% [60, 80] of comparisons.",
        ),
        (
            judged(summary({"llama2": True}, llama2=UP), (0.3, 0.2, 0.45)),
            "lost",
            "align is worse than sft in judge, which prefers it in 30% [20, 45] of comparisons.",
        ),
        (
            judged(summary({"llama2": True}, llama2=UP), (0.5, 0.4, 0.6)),
            "nothing clear",
            "No clear difference between align and sft in judge, which prefers it in 50% [40, 60] "
            "of comparisons.",
        ),
        (
            judged(summary({"llama2": True}, llama2=UP), (0.7, 0.6, 0.8), own=True),
            "gained by its own reward",
            "Also better: judge (trained on it), which prefers it in 70% [60, 80] of comparisons.",
        ),
        (
            summary({"llama2": True}, llama2=UP, length=UP),
            "gained by its own reward",
            "align is better",
        ),
    ],
)
def test_what_decides_and_what_is_said_of_it(
    found: dict[str, Any], outcome: str, said: str
) -> None:
    assert verdict(found).outcome == outcome and said in text(found)


def test_a_reward_that_is_only_shown_decides_nothing() -> None:
    assert "length" not in text(summary({"llama2": True}, llama2=UP, length=DOWN))


def test_a_gain_that_falls_below_the_base_is_mixed() -> None:
    rows = summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR)
    for row in rows[1::2]:
        rows.append(replace(row, baseline=BASE_MODEL, difference=estimate(UP)))
    assert verdict(rows).outcome == "mixed"
    assert (
        f"Worse than {BASE_MODEL}: refused in vain (lower is better), +30 points [20, 40]."
        in text(rows)
    )


@pytest.mark.parametrize(
    ("longer", "shorter", "difference", "outcome", "said"),
    [
        ((0.78, 0.6, 0.9), (0.28, 0.1, 0.5), UP, "only length", "align prefers longer responses"),
        ((0.78, 0.6, 0.9), (0.28, 0.1, 0.5), UNCLEAR, "nothing clear", "which is no gain"),
        ((0.78, 0.6, 0.9), (0.45, 0.3, 0.65), UP, "gained", "align is better than sft"),
        ((0.9, 0.8, 0.95), (0.6, 0.55, 0.7), UP, "gained", "align is better than sft"),
    ],
)
def test_a_gain_that_is_only_length_is_no_gain(
    longer: Any, shorter: Any, difference: Any, outcome: str, said: str
) -> None:
    row = summary({PAIRS: False}, **{PAIRS: difference})[1]
    split = {LONGER_IS_BETTER: longer, SHORTER_IS_BETTER: shorter}
    rows = [replace(row, percent=True)]
    for name, share in split.items():
        rows.append(replace(row, metric=name, estimate=estimate(share), difference={}))
    assert verdict(rows).outcome == outcome and said in text(rows)
    found = "78% [60, 90] of pairs right where the better one is longer, and 28% [10, 50] where"
    assert (found in text(rows)) == (shorter[0] == 0.28)
    assert ("better than" in text(rows)) == (outcome == "gained")


def three(p: float, others: float, policies: tuple[str, ...] = ("align",)) -> list[Row]:
    """Three metrics that nobody learned from, the first with p and the others with another p."""
    rows = []
    for policy in policies:
        for name in ("facts", "refused", "refused in vain"):
            difference = estimate(UP, p=p if name == "facts" else others)
            row = Row(policy, name, "metric", {}, "sft", difference, trained_on=False, tested=True)
            rows.append(replace(row, percent=name in MEASURES, lower=name == "refused in vain"))
    return rows


@pytest.mark.silent_bug(
    "statistics: several metrics",
    "Each measure has its own 95% interval, and any that excludes 0 is a finding.",
    "The first measure decides; the others are adjusted together with Holm's method, with a "
    "twentieth of the error.",
)
def test_the_headline_decides_and_the_others_are_adjusted() -> None:
    assert verdict(three(0.04, 0.5)).outcome == "gained"  # hardly any power is lost
    unclear = three(0.5, 0.04)
    assert (
        verdict(unclear).outcome == "nothing clear"
        and "Worse" not in text(unclear)
        and "better:" not in text(unclear)
    )
    # Its interval excludes 0
    assert "+0.30 [0.20, 0.40], p 0.5 after adjusting for all comparisons." in text(unclear)
    # Once the headline is clear, the others have the whole error: 0.02 for the first of two.
    assert "Also better: refused" in text(three(0.001, 0.02))
    assert "Also better" not in text(three(0.001, 0.03))


def test_the_last_policy_has_the_headline_and_the_others_are_adjusted() -> None:
    both = three(0.04, 0.5, ("align", "ppo"))
    assert [verdict(both, policy).outcome for policy in ("align", "ppo")] == [
        "nothing clear",
        "gained",
    ]
    clear = three(1e-4, 0.5, ("align", "ppo"))
    assert [verdict(clear, policy).outcome for policy in ("align", "ppo")] == ["gained", "gained"]


@pytest.mark.silent_bug(
    "statistics: no spread",
    "An effect that is the same at all prompts has no interval, and so no verdict.",
    "It has a p value, that of a sign test.",
)
def test_an_effect_that_is_equal_at_all_prompts_has_a_verdict() -> None:
    def outcome(prompts: int) -> str:
        sft, align = summary({"refused": False}, refused=UP)
        gap = paired_difference([3.0] * prompts, [2.0] * prompts)
        return verdict([sft, replace(align, difference=gap)]).outcome

    assert (outcome(5), outcome(6)) == ("nothing clear", "gained")


# Tables


def full() -> list[Row]:
    """With everything that an evaluation may have."""
    share = {"mean": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    won = {"win_rate": share, "counts": "12/4/4"}
    rows = []
    for row in judged(summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR), (0.7, 0.6, 0.8)):
        equal = estimate((0.6, 0.4, 0.8)) if row.kind == "judge" else estimate(UNCLEAR)
        rows.append(replace(row, equal_length=equal, **won) if row.baseline else row)
    rated = list(rows)
    rows = adjusted(rows)
    for policy in ("sft", "align"):
        rows.append(
            Row(policy, LENGTH, ANSWERS, {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 20})
        )
        rows.append(Row(policy, TRUNCATED, ANSWERS, {"mean": 0.5}, percent=True))
        rows.append(Row(policy, KL, ANSWERS, {"mean": 2.0 * (policy == "align")}, "sft"))
    for value in ("food", "sport"):
        for row in rated:
            if row.metric != "refused in vain":
                at = {**row.estimate, "n": 12}
                part = {"column": "topic", "value": value, "tested": False}
                rows.append(replace(row, estimate=at, **part))
    return rows


def test_the_table_has_a_line_per_metric() -> None:
    rows = main_rows(full())
    upright = table(rows)
    assert upright.columns == ["", "sft", "align"] and upright.note == "* lower is better"
    assert upright.rows == [
        ["refused", "40%", "70%"],
        ["refused in vain*", "40%", "70%"],
        ["judge", "-", "70% [60, 80]"],
        ["length, tokens", "20.0 [19.0, 21.0]", "20.0 [19.0, 21.0]"],
        ["truncated", "50%", "50%"],
        ["KL, nats", "0.00", "2.00"],
    ]


def test_the_file_has_every_row() -> None:
    rows = full()
    assert rows_of({"results": json.loads(json.dumps(list(map(plain, rows))))}) == rows


def test_the_other_tables_are_of_the_same_rows() -> None:
    rows = full()
    assert comparisons(rows).rows == [
        ["align", "refused", "+30% [20, 40]", "+10% [-10, 30]", "75% [50, 90]", "12/4/4"],
        ["align", "refused in vain", "+10% [-10, 30]", "+10% [-10, 30]", "75% [50, 90]", "12/4/4"],
        ["align", "judge", "70% [60, 80]", "60% [40, 80]", "75% [50, 90]", "12/4/4"],
    ]
    (by_topic,) = details(rows)
    assert by_topic.title == "by topic" and by_topic.columns == [
        "topic",
        "policy",
        "refused",
        "judge",
    ]
    assert by_topic.rows == [
        ["food", "sft", "40%"],
        ["food", "align", "70%", "70% [60, 80]"],
        ["sport", "sft", "40%"],
        ["sport", "align", "70%", "70% [60, 80]"],
    ]
