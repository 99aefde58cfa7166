"""The rows of an evaluation, and the verdict that they give: clear only by what a policy did not
learn from.
"""

from __future__ import annotations

import csv
from typing import Any

import pytest

from alignkit.evaluation.statistics import paired_difference
from alignkit_plugins.evaluate.rows import BASE_MODEL, Row, as_csv, main_rows, rows_of
from alignkit_plugins.evaluate.tables import by_column, comparisons, details, table
from alignkit_plugins.evaluate.verdicts import Verdict, verdicts

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
MEASURES = {
    "refused": {"better": "higher", "percent": True},
    "refused in vain": {"better": "lower", "percent": True},
}


def estimate(
    triple: tuple[float, float, float] | None, middle: float = 0.0, p: float | None = None
) -> dict[str, Any]:
    """p: by default, clear of any number of others where the interval excludes the middle."""
    mean, low, high = triple or (None, None, None)
    if p is None:
        p = 0.3 if low is None or high is None or low <= middle <= high else 1e-6
    return {"mean": mean, "low": low, "high": high, "n": 20, "p": p}


def summary(own: dict[str, bool | None], **scores: Any) -> dict[str, Any]:
    """An evaluation of align against sft. scores: differences by metric; `_` stands for a blank."""
    named = {name.replace("_", " "): triple for name, triple in scores.items()}
    means = {
        policy: {"rewards": {name: {"mean": at, "n": 20} for name in named}}
        for policy, at in MEANS.items()
    }
    return {
        "baseline": "sft",
        "headline": next(iter(named)),
        "rewards": list(named),
        "metrics": {name: MEASURES[name] for name in named if name in MEASURES},
        "trained_on": {"align": own},
        "policies": means,
        "against": {
            "align": {name: {"difference": estimate(triple)} for name, triple in named.items()}
        },
    }


MEANS = {"sft": 0.4, "align": 0.7}


def judged(found: dict[str, Any], judge: str, triple: tuple[float, float, float]) -> dict[str, Any]:
    return {**found, "judged": {"align": {judge: {"preference": estimate(triple, 0.5)}}}}


def verdict(found: dict[str, Any], policy: str = "align") -> Verdict:
    return next(one for one in verdicts(rows_of(found), found) if one.policy == policy)


def text(found: dict[str, Any]) -> str:
    return " ".join(verdict(found).sentences)


IN_VAIN = {"refused": False, "refused in vain": False}


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        (
            summary({"refused": False, "llama2": True}, refused=UP, llama2=UP),
            "gained",
            "align is better than sft in refused: 70% against 40%, difference +30 points [20, 40]. "
            "Also better: llama2 +0.30 [0.20, 0.40] (trained on it).",
        ),
        (
            summary({"llama2": True}, llama2=UP),
            "gained by its own reward",
            "align is better than sft in the reward llama2: 0.70 against 0.40, difference +0.30 "
            "[0.20, 0.40]. It was trained on this reward, so this is no independent proof.",
        ),
        (
            summary({"helpful": None}, helpful=UP),
            "gained, not verified",
            "It is not known whether it was trained on this, so this may be no independent proof.",
        ),
        (
            summary({"llama2": True, "refused": False}, llama2=UP, refused=UNCLEAR),
            "nothing clear",
            "No clear difference between align and sft in refused: +10 points [-10, 30]. More "
            "examples or more training may show one. Also better: llama2 +0.30 [0.20, 0.40] "
            "(trained on it).",
        ),
        (
            summary({"llama2": True, "refused": False}, llama2=UP, refused=DOWN),
            "lost",
            "align is worse than sft in refused: 70% against 40%, difference -30 points [-40, "
            "-20].",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=UP),
            "mixed",
            "difference +30 points [20, 40]. Worse: refused in vain +30 points [20, 40].",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=DOWN),
            "gained",
            "Also better: refused in vain -30 points [-40, -20].",
        ),
        (
            summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR),
            "gained",
            "No clear difference in refused in vain.",
        ),
        (
            summary({"refused in vain": False}, refused_in_vain=DOWN),
            "gained",
            "better than sft in refused in vain (lower is better): 70% against 40%, difference "
            "-30 points [-40, -20].",
        ),
        (
            summary({"refused": False, "llama2": True}, refused=UP, llama2=DOWN),
            "mixed",  # a loss counts whoever says it
            "Worse: llama2 -0.30 [-0.40, -0.20] (trained on it).",
        ),
        (
            summary({"refused": False}, refused=None),
            "unknown",
            "align and sft cannot be compared: no prompt has a score for both.",
        ),
        (
            judged(summary({"llama2": True, "judge": False}, llama2=UP), "judge", (0.7, 0.6, 0.8)),
            "gained",
            "judge prefers align to sft: in 70% [60, 80] of comparisons.",
        ),
        (
            judged(summary({"llama2": True, "judge": False}, llama2=UP), "judge", (0.3, 0.2, 0.45)),
            "lost",
            "judge prefers sft to align: in 70% [55, 80] of comparisons.",
        ),
        (
            judged(summary({"llama2": True, "judge": False}, llama2=UP), "judge", (0.5, 0.4, 0.6)),
            "nothing clear",
            "judge has no clear preference between align and sft: align in 50% [40, 60] of "
            "comparisons.",
        ),
        (
            judged(summary({"llama2": True, "judge": True}, llama2=UP), "judge", (0.7, 0.6, 0.8)),
            "gained by its own reward",
            "Also better: preferred by judge 70% [60, 80].",
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


def test_answers_that_were_chosen_by_the_reward_are_no_proof() -> None:
    found = {**summary({"llama2": True}, llama2=UP), "variants": {"align": {"best_of": 4}}}
    assert "Its answers were chosen by this reward, so this is no independent proof." in text(found)


def test_a_gain_that_falls_below_the_base_is_mixed() -> None:
    found = summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR)
    found["against_base"] = {"align": {"refused": estimate(UP), "refused in vain": estimate(UP)}}
    assert verdict(found).outcome == "mixed"
    assert f"Worse than {BASE_MODEL}: refused in vain +30 points [20, 40]." in text(found)


def three(p: float, others: float, policies: tuple[str, ...] = ("align",)) -> dict[str, Any]:
    """Three metrics that nobody learned from, the first with p and the others with another p
    value.
    """
    names = ("facts", "refused", "refused in vain")
    against = {
        policy: {
            name: {"difference": estimate(UP, p=others if at else p)}
            for at, name in enumerate(names)
        }
        for policy in policies
    }
    own = {policy: dict.fromkeys(names, False) for policy in policies}
    metrics = {**MEASURES, "facts": {}}
    means = {policy: {"rewards": {}} for policy in policies}
    found = {
        "baseline": "sft",
        "headline": "facts",
        "metrics": metrics,
        "trained_on": own,
        "against": against,
    }
    return {**found, "policies": means}


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


def test_what_the_diversity_of_answers_claims_is_adjusted_too() -> None:
    found = three(0.001, 0.02)
    assert "Also better" in text(found)
    changes = {
        name: {**estimate(UP), "difference": estimate(UP, p=0.5)}
        for name in ("distinct-1", "entropy")
    }
    found["policies"]["align"]["diversity"] = changes
    assert "Also better" not in text(found)


@pytest.mark.silent_bug(
    "statistics: no spread",
    "An effect that is the same at all prompts has no interval, and so no verdict.",
    "It has a p value, that of a sign test.",
)
def test_an_effect_that_is_equal_at_all_prompts_has_a_verdict() -> None:
    def outcome(prompts: int) -> str:
        found = summary({"refused": False}, refused=UP)
        found["against"]["align"]["refused"]["difference"] = paired_difference(
            [3.0] * prompts, [2.0] * prompts
        )
        return verdict(found).outcome

    assert (outcome(5), outcome(6)) == ("nothing clear", "gained")


def test_an_evaluation_without_p_values_goes_by_its_intervals() -> None:
    found = summary({"refused": False, "llama2": True}, refused=UP, llama2=DOWN)
    for one in found["against"]["align"].values():
        del one["difference"]["p"]
    assert [row.clear for row in rows_of(found) if row.tested] == [1, -1]
    assert verdict(found).outcome == "mixed" and "adjusting" not in text(found)


# Tables


def full() -> dict[str, Any]:
    """With everything that an evaluation.json may have."""
    found = judged(summary(IN_VAIN, refused=UP, refused_in_vain=UNCLEAR), "judge", (0.7, 0.6, 0.8))
    share = {"mean": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    for result in found["against"]["align"].values():
        result |= {
            "win_rate": share,
            "wins": 12,
            "losses": 4,
            "ties": 4,
            "at_equal_length": estimate(UNCLEAR),
        }
    found["judged"]["align"]["judge"] |= {
        **{
            "win_rate": share,
            "wins": 12,
            "losses": 4,
            "ties": 4,
            "inconsistent": share,
            "first_position": share,
        },
        "length_controlled": {"mean": 0.6, "standard_error": 0.1, "n": 20},
    }
    for policy, measured in found["policies"].items():
        measured |= {"length": {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 20}, "truncated": 0.5}
        measured |= {"kl": {"mean": 2.0 * (policy == "align"), "low": None, "high": None, "n": 20}}
        measured["diversity"] = {
            "self-BLEU": {**share, "difference": estimate(DOWN) if policy == "align" else None}
        }
    found["reference"] = "sft"
    points = {"elo": {"mean": 1000.0, "low": 990.0, "high": 1010.0, "n": 20}}
    found["ranking"] = {"refused": {"align": points, "sft": points}}
    at = {
        "prompts": 12,
        "policies": {
            policy: {"refused": {"mean": mean, "n": 12}} for policy, mean in MEANS.items()
        },
        "against": {"align": {"refused": found["against"]["align"]["refused"]}},
        "judged": {"align": {"judge": {**estimate((0.7, 0.6, 0.8), 0.5), "n": 12}}},
    }
    found["by"] = {"topic": {"food": at, "sport": at}}
    return found


def test_the_table_has_policies_and_metrics_whichever_way_fits() -> None:
    rows = main_rows(rows_of(full()))
    upright = table(rows, width=80)
    assert upright.columns == ["", "sft", "align"] and upright.note == "* lower is better"
    assert upright.rows == [
        ["refused", "40%", "70%"],
        ["refused in vain*", "40%", "70%"],
        ["judge", "-", "70% [60, 80]"],
        ["length, tokens", "20.0 [19.0, 21.0]", "20.0 [19.0, 21.0]"],
        ["truncated", "50%", "50%"],
        ["KL, nats", "0.00", "2.00"],
    ]
    many = [
        Row(f"policy {at}", "refused", "metric", {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9})
        for at in range(9)
    ]
    across = table(many, width=80)
    assert across.columns == ["policy", "refused"] and across.rows[8] == [
        "policy 8",
        "0.50 [0.40, 0.60]",
    ]


def test_every_number_has_a_row() -> None:
    rows = rows_of(full())
    lines = list(csv.DictReader(as_csv(rows).splitlines()))
    assert len(lines) == len(rows)
    found = {(one["policy"], one["metric"], one["kind"], one["value"]): one for one in lines}
    assert {one["kind"] for one in lines} == {
        *("metric", "judge", "answers", "diversity", "win rate", "equal length", "Elo", "order")
    }
    refused = found["align", "refused", "metric", ""]
    assert [
        refused[key]
        for key in ("mean", "difference", "difference_low", "difference_high", "won/lost/tied")
    ] == [*("0.7", "0.3", "0.2", "0.4", "12/4/4")]
    assert (refused["baseline"], refused["clear"], refused["better"], refused["trained_on"]) == (
        *("sft", "1", "higher", "False"),
    )
    judge = found["align", "judge", "judge", ""]
    assert (
        judge["mean"] == "0.7"
        and float(judge["difference"]) == pytest.approx(0.2)
        and judge["clear"] == "1"
    )
    assert found["align", "refused", "equal length", ""]["difference"] == "0.1"
    assert float(found["align", "judge", "equal length", ""]["high"]) == pytest.approx(0.796)
    assert found["align", "self-BLEU", "diversity", ""]["clear"] == "1"  # lower is more diverse
    assert found["align", "refused", "metric", "sport"]["difference"] == "0.3"
    # Of a part of the prompts, nothing is claimed
    assert found["align", "refused", "metric", "sport"]["clear"] == ""
    assert found["sft", "refused", "metric", "food"]["mean"] == "0.4"


def test_the_other_tables_are_of_the_same_rows() -> None:
    rows = rows_of(full())
    assert comparisons(rows).rows == [
        ["align", "refused", "+30% [20, 40]", "+10% [-10, 30]", "75% [50, 90]", "12/4/4"],
        ["align", "refused in vain", "+10% [-10, 30]", "+10% [-10, 30]", "75% [50, 90]", "12/4/4"],
        ["align", "judge", "70% [60, 80]", "60% [40, 80]", "75% [50, 90]", "12/4/4"],
    ]
    assert [one.title for one in details(rows)] == [
        "diversity of the answers",
        "Elo points; the mean of all policies is 1000",
        "what the order of two answers does to a judge",
        "by topic, differences from the baseline",
    ]
    assert by_column(rows, "topic").rows == [
        ["food", "align", "12", "+30% [20, 40]", "70% [60, 80]"],
        ["sport", "align", "12", "+30% [20, 40]", "70% [60, 80]"],
    ]


def test_many_values_of_a_column_are_the_most_frequent_ones() -> None:
    rows = [
        Row("sft", "refused", "metric", {"mean": 0.5, "n": at}, column="topic", value=f"v{at:02d}")
        for at in range(40)
    ]
    found = by_column(rows, "topic")
    assert len(found.rows) == 30 and found.rows[0][0] == "v10" and "10 rarer values" in found.note
