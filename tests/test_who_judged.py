"""What raters together conclude: green only by those that a policy did not learn from."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.evaluation.who_judged import ADVICE, conclusion, lower_is_better, oriented

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
MEASURES = {
    "refused": {"better": "higher", "percent": True},
    "refused in vain": {"better": "lower", "percent": True},
}


def estimate(triple: tuple[float, float, float] | None) -> dict[str, Any]:
    mean, low, high = triple or (None, None, None)
    return {"mean": mean, "low": low, "high": high, "n": 20}


def summary(own: dict[str, bool | None], **scores: Any) -> dict[str, Any]:
    """An evaluation of align against sft. scores: by rater; `_` stands for a blank."""
    named = {name.replace("_", " "): triple for name, triple in scores.items()}
    return {
        "baseline": "sft",
        "headline": next(iter(named)),
        "measures": {name: MEASURES[name] for name in named if name in MEASURES},
        "trained_on": {"align": own},
        "against": {"align": {name: {"difference": estimate(triple)} for name, triple in named.items()}},
    }


def judged(found: dict[str, Any], judge: str, triple: tuple[float, float, float]) -> dict[str, Any]:
    return {**found, "judged": {"align": {judge: {"preference": estimate(triple)}}}}


def test_a_gain_by_an_independent_measure() -> None:
    found = conclusion(summary({"refused": False, "llama2": True}, refused=UP, llama2=UP), "align")
    assert found.outcome == "gained"
    assert found.sentence == (
        "align gained over sft by independent measures: refused +30% [20, 40]; "
        "by what it was trained on: llama2 (reward) +0.30 [0.20, 0.40]"
    )


def test_a_gain_by_its_own_reward_is_no_gain_and_says_what_to_do() -> None:
    found = conclusion(summary({"llama2": True}, llama2=UP), "align")
    assert found.outcome == "gained by its own reward"
    assert found.sentence == (
        "align gained over sft by its own reward: llama2 (reward) +0.30 [0.20, 0.40], but it was trained to please it; "
        + ADVICE
    )
    unclear = conclusion(summary({"refused": False, "llama2": True}, refused=UNCLEAR, llama2=UP), "align")
    assert unclear.outcome == "gained by its own reward" and ADVICE not in unclear.sentence
    assert unclear.sentence.endswith("; independent, and unclear: refused +10% [-10, 30]")


def test_a_gain_by_its_judge_and_a_loss_elsewhere_are_both_said() -> None:
    found = conclusion(summary({"refused": False, "llama2": True}, refused=DOWN, llama2=UP), "align")
    assert found.outcome == "mixed"
    assert found.sentence == (
        "align gained over sft: llama2 (reward) +0.30 [0.20, 0.40], by its own judgment; "
        "but is worse by refused -30% [-40, -20]"
    )


def test_one_independent_loss_spoils_an_independent_gain() -> None:
    own = {"refused": False, "refused in vain": False}
    assert conclusion(summary(own, refused=UP, refused_in_vain=UP), "align").outcome == "mixed"
    assert conclusion(summary(own, refused=UP, refused_in_vain=DOWN), "align").outcome == "gained"


def test_a_rater_of_unknown_origin_verifies_nothing() -> None:
    found = conclusion(summary({"helpful": None}, helpful=UP), "align")
    assert found.outcome == "gained, not verified"
    assert "it is not known whether align was trained on it" in found.sentence
    assert conclusion({**summary({}, helpful=UP), "trained_on": {}}, "align").outcome == "gained, not verified"


@pytest.mark.parametrize(
    ("score", "outcome"), [(DOWN, "lost"), (UNCLEAR, "nothing clear"), (None, "unknown"), (UP, "gained")]
)
def test_the_outcome_follows_the_interval(score: Any, outcome: str) -> None:
    assert conclusion(summary({"refused": False}, refused=score), "align").outcome == outcome
    lower = {DOWN: UP, UP: DOWN}.get(score, score)
    assert conclusion(summary({"refused in vain": False}, refused_in_vain=lower), "align").outcome == outcome


def test_a_judge_may_be_what_a_policy_was_trained_on() -> None:
    own = summary({"llama2": True, "judge": True, "other": False}, llama2=UP)
    assert conclusion(judged(own, "judge", (0.7, 0.6, 0.8)), "align").outcome == "gained by its own reward"
    by_other = conclusion(judged(own, "other", (0.7, 0.6, 0.8)), "align")
    assert by_other.outcome == "gained" and by_other.sentence.startswith(
        "align gained over sft by independent judges: other 70%"
    )
    assert conclusion(judged(own, "other", (0.3, 0.2, 0.4)), "align").outcome == "mixed"


def test_rewards_that_say_nothing_about_quality_do_not_count() -> None:
    found = summary({"llama2": True}, llama2=UP, length=UP)
    assert conclusion(found, "align").outcome == "gained by its own reward"


def test_a_gain_that_falls_below_the_base_is_mixed() -> None:
    found = summary({"refused": False, "refused in vain": False}, refused=UP, refused_in_vain=UNCLEAR)
    below = {"align": {"refused": estimate(UP), "refused in vain": estimate(UP)}}
    concluded = conclusion({**found, "against_base": below}, "align")
    assert concluded.outcome == "mixed"
    assert concluded.sentence.endswith("; worse than the untouched base: refused in vain +30% [20, 40]")


@pytest.mark.parametrize("own", [True, None])
def test_a_loss_counts_whoever_says_it(own: bool | None) -> None:
    found = conclusion(summary({"refused": False, "llama2": own}, refused=UP, llama2=DOWN), "align")
    assert found.outcome == "mixed"
    assert "but is worse by llama2 (reward) -0.30 [-0.40, -0.20]" in found.sentence
    assert ("by its own judgment" in found.sentence) == bool(own)


def test_a_difference_is_turned_for_measures_whose_lower_scores_are_better() -> None:
    found = summary({}, refused=UP, refused_in_vain=UP)
    assert oriented(found, "refused", estimate(UP)) == estimate(UP)
    assert oriented(found, "refused in vain", estimate(UP)) == estimate(DOWN)
    assert oriented(found, "refused in vain", None) is None
    assert lower_is_better(found) == "lower is better: refused in vain"
