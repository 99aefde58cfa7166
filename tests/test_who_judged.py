"""What raters together conclude: green only by those that a policy did not learn from."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.evaluation.statistics import paired_difference
from alignkit_plugins.evaluate.who_judged import ADVICE, conclusion, lower_is_better, oriented, said

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
MEASURES = {
    "refused": {"better": "higher", "percent": True},
    "refused in vain": {"better": "lower", "percent": True},
}


def estimate(triple: tuple[float, float, float] | None, middle: float = 0.0, p: float | None = None) -> dict[str, Any]:
    """p: by default, clear of any number of others where the interval excludes the middle."""
    mean, low, high = triple or (None, None, None)
    if p is None:
        p = 0.3 if low is None or high is None or low <= middle <= high else 1e-6
    return {"mean": mean, "low": low, "high": high, "n": 20, "p": p}


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
    return {**found, "judged": {"align": {judge: {"preference": estimate(triple, 0.5)}}}}


def test_a_gain_by_an_independent_measure() -> None:
    found = conclusion(summary({"refused": False, "llama2": True}, refused=UP, llama2=UP), "align")
    assert found.outcome == "gained"
    assert found.sentence == (
        "align gained over sft by an independent measure: refused +30% [20, 40]; "
        "the others, adjusted together (Holm), better: llama2 (reward) +0.30 [0.20, 0.40], by its own judgment"
    )


def test_a_gain_by_its_own_reward_is_no_gain_and_says_what_to_do() -> None:
    found = conclusion(summary({"llama2": True}, llama2=UP), "align")
    assert found.outcome == "gained by its own reward"
    assert found.sentence == (
        "align gained over sft by its own reward: llama2 (reward) +0.30 [0.20, 0.40], but it was trained to please it; "
        + ADVICE
    )


def test_the_first_rater_that_a_policy_did_not_learn_from_decides() -> None:
    unclear = conclusion(summary({"llama2": True, "refused": False}, llama2=UP, refused=UNCLEAR), "align")
    assert unclear.outcome == "nothing clear"
    assert unclear.sentence.endswith("better: llama2 (reward) +0.30 [0.20, 0.40], by its own judgment")
    lost = conclusion(summary({"llama2": True, "refused": False}, llama2=UP, refused=DOWN), "align")
    assert lost.outcome == "lost" and lost.sentence.startswith("align lost against sft: refused -30% [-40, -20]; ")


def test_one_independent_loss_spoils_an_independent_gain() -> None:
    own = {"refused": False, "refused in vain": False}
    found = conclusion(summary(own, refused=UP, refused_in_vain=UP), "align")
    assert found.outcome == "mixed" and found.sentence == (
        "align gained over sft by an independent measure, with losses elsewhere: refused +30% [20, 40]; "
        "the others, adjusted together (Holm), worse: refused in vain +30% [20, 40]"
    )
    assert conclusion(summary(own, refused=UP, refused_in_vain=DOWN), "align").outcome == "gained"


def three(p: float, others: float, policies: tuple[str, ...] = ("align",)) -> dict[str, Any]:
    """Three measures that nobody learned from, the first with p and the others with another p value."""
    names = ("facts", "refused", "refused in vain")
    against = {
        policy: {name: {"difference": estimate(UP, p=others if at else p)} for at, name in enumerate(names)}
        for policy in policies
    }
    own = {policy: dict.fromkeys(names, False) for policy in policies}
    measures = {**MEASURES, "facts": {}}
    return {"baseline": "sft", "headline": "facts", "measures": measures, "trained_on": own, "against": against}


@pytest.mark.silent_bug(
    "statistics: several measures",
    "Each measure has its own 95% interval, and any that excludes 0 is a finding.",
    "The first measure decides; the others are adjusted together with Holm's method, with a twentieth of the error.",
)
def test_the_headline_decides_and_the_others_are_adjusted() -> None:
    assert conclusion(three(0.04, 0.5), "align").outcome == "gained"  # hardly any power is lost
    unclear = conclusion(three(0.5, 0.04), "align")
    assert unclear.outcome == "nothing clear" and "worse:" not in unclear.sentence and "better:" not in unclear.sentence
    assert "refused +30% [20, 40] (adjusted p 0.5)" in unclear.sentence  # its own interval excludes 0
    # Once the headline is clear, the others have the whole error: 0.02 for the first of two.
    assert "better: refused" in conclusion(three(0.001, 0.02), "align").sentence
    assert "better:" not in conclusion(three(0.001, 0.03), "align").sentence


def test_the_last_policy_has_the_headline_and_the_others_are_adjusted() -> None:
    both = three(0.04, 0.5, ("align", "ppo"))
    assert [conclusion(both, policy).outcome for policy in ("align", "ppo")] == ["nothing clear", "gained"]
    assert ", adjusted (Holm)" in conclusion(both, "align").sentence
    clear = three(1e-4, 0.5, ("align", "ppo"))
    assert [conclusion(clear, policy).outcome for policy in ("align", "ppo")] == ["gained", "gained"]


@pytest.mark.silent_bug(
    "statistics: no spread",
    "An effect that is the same at all prompts has no interval, and so no verdict.",
    "It has a p value, that of a sign test.",
)
def test_an_effect_that_is_equal_at_all_prompts_has_a_verdict() -> None:
    def outcome(prompts: int) -> str:
        found = summary({"refused": False}, refused=UP)
        found["against"]["align"]["refused"]["difference"] = paired_difference([3.0] * prompts, [2.0] * prompts)
        return conclusion(found, "align").outcome

    assert (outcome(5), outcome(6)) == ("nothing clear", "gained")


def test_an_evaluation_without_p_values_goes_by_its_intervals() -> None:
    found = summary({"refused": False, "llama2": True}, refused=UP, llama2=DOWN)
    for one in found["against"]["align"].values():
        del one["difference"]["p"]
    assert [one.better for one in said(found, "align")] == [1, -1]
    assert conclusion(found, "align").outcome == "mixed" and "adjusted p" not in conclusion(found, "align").sentence


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
        "align gained over sft by an independent judge: other 70%"
    )
    assert conclusion(judged(own, "other", (0.3, 0.2, 0.4)), "align").outcome == "lost"


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
    assert "worse: llama2 (reward) -0.30 [-0.40, -0.20]" in found.sentence
    assert ("by its own judgment" in found.sentence) == bool(own)


def test_a_difference_is_turned_for_measures_whose_lower_scores_are_better() -> None:
    found = summary({}, refused=UP, refused_in_vain=UP)
    assert oriented(found, "refused", estimate(UP)) == estimate(UP)
    assert oriented(found, "refused in vain", estimate(UP)) == estimate(DOWN)
    assert oriented(found, "refused in vain", None) is None
    assert lower_is_better(found) == "lower is better: refused in vain"
