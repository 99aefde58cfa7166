"""What judges said in an evaluation: a verdict per policy and judge, and what to doubt.

Sage (2025, arXiv:2512.16041) finds that even the best judges contradict themselves in a quarter of hard cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit_plugins.evaluate.readable import bounds, mapping, number, short, shown
from alignkit_plugins.evaluate.verdicts import Verdict, verdict_of
from alignkit_plugins.evaluate.who_judged import GAINS, own_of, said

ORDER_DECIDES = 0.25  # share of comparisons
FAVORS = 0.1  # by which a judge may prefer a position without a warning
OUTCOMES = {"win": "wins", "loss": "losses", "tie": "ties"}
BY_OWN: dict[str, str] = {
    "gained by its own reward": " But {policy} was trained to please {judge}.",
    "gained, not verified": " But it is not known whether {policy} was trained to please {judge}.",
}
STANDARD_ERRORS = 1.96  # of half an interval of 95%


def verdicts(stage: str, summary: Mapping[str, Any]) -> list[Verdict]:
    """A verdict per policy and judge of an evaluation.json."""
    return [_verdict(stage, summary, policy, judge, result) for policy, judge, result in _results(summary)]


def _results(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for policy, judges in (summary.get("judged") or {}).items():
        for judge, result in judges.items():
            yield str(policy), str(judge), result


def _verdict(stage: str, summary: Mapping[str, Any], policy: str, judge: str, result: Mapping[str, Any]) -> Verdict:
    better = next(one.better for one in said(summary, policy) if one.rater == judge)
    named = {None: "unknown", 0: "nothing clear", 1: GAINS[own_of(summary, policy, judge)], -1: "lost"}
    outcome = named[better]
    verdict = verdict_of(stage, summary, policy, outcome, result, judge=judge)
    return {**verdict, "sentence": _sentence(verdict, result, summary)}


def _sentence(verdict: Verdict, result: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    alone = summary.get("headline") is None  # no reward has a verdict, which would say the lengths
    policy, baseline, judge, longer = verdict["policy"], verdict["baseline"], verdict["judge"], verdict["longer"]
    if verdict["outcome"] == "unknown":
        return f"{judge} cannot compare {policy} and {baseline}: none of its {_count(result)} has a verdict."
    begin = {
        **dict.fromkeys(GAINS.values(), _prefers(judge, policy, baseline)),
        "lost": _prefers(judge, baseline, policy),
        "nothing clear": _undecided(judge, policy, baseline),
    }[verdict["outcome"]]
    counts = ", ".join(_counted(result.get(key), one, key) for one, key in OUTCOMES.items())
    text = f"{begin}: {policy} is preferred {shown(verdict['preference'], percent=True)}"
    text += f" over {_counted(verdict['preference'].get('n'), 'prompt', 'prompts')} ({counts})."
    text += BY_OWN.get(verdict["outcome"], "").format(policy=policy, judge=judge)
    if no_judge := mapping(mapping(summary.get("judge_cards")).get(judge)).get("no_judge"):
        text += f" But {no_judge}."
    if controlled := length_controlled(verdict["length_controlled"]):
        text += f" At equal length by AlpacaEval's model: {controlled}."
    if alone and longer is not None and abs(longer) >= 0.005:
        text += f" Answers are {abs(longer):.0%} {'longer' if longer > 0 else 'shorter'}."
    return text


def _prefers(judge: str, better: str, worse: str) -> str:
    return f"{judge} prefers {better} to {worse}"


def _undecided(judge: str, policy: str, baseline: str) -> str:
    return f"{judge} has no clear preference between {policy} and {baseline}"


def _count(result: Mapping[str, Any]) -> str:
    return _counted(result.get("comparisons"), "comparison", "comparisons")


def _counted(count: Any, one: str, several: str) -> str:
    return f"{short(count)} {one if count == 1 else several}"


def length_controlled(rate: Any) -> str:
    """`58% (standard error 4%)`; empty if there is none."""
    mean, error = _rate(rate)
    if mean is None:
        return ""
    return f"{mean:.0%}" + ("" if error is None else f" (standard error {error:.0%})")


def _rate(rate: Any) -> tuple[float | None, float | None]:
    return number(mapping(rate).get("mean")), number(mapping(rate).get("standard_error"))


# What to doubt


def doubts(summary: Mapping[str, Any], found: Sequence[Verdict]) -> Iterator[str]:
    """Warnings about the judges of an evaluation. found: all verdicts on it, of rewards too."""
    for verdict in found:
        if verdict["judge"]:
            yield from _of_verdict(summary, verdict, found)
    for policy, judge, result in _results(summary):
        yield from _of_judge(policy, judge, result)


def _of_verdict(summary: Mapping[str, Any], verdict: Verdict, found: Sequence[Verdict]) -> Iterator[str]:
    policy, judge, baseline = verdict["policy"], verdict["judge"], verdict["baseline"]
    opposite = {**dict.fromkeys(GAINS.values(), "lost"), "lost": "gained"}.get(verdict["outcome"])
    for other in found:
        if other["policy"] == policy and other["reward"] and _alone(summary, other) == opposite:
            ours, theirs = (baseline, policy) if opposite == "gained" else (policy, baseline)
            contrary = f"{other['reward']} prefers {theirs}, but {_prefers(judge, ours, '').removesuffix(' to ')}"
            yield f"{contrary}: the reward or the judge may be fooled"
    mean, error = _rate(verdict["length_controlled"])
    if opposite and mean is not None and error is not None:
        winner, loser = (policy, baseline) if opposite == "lost" else (baseline, policy)
        lead, half = (mean - 0.5 if winner == policy else 0.5 - mean), STANDARD_ERRORS * error
        if lead < -half:
            yield f"at equal length, {_prefers(judge, loser, winner)}: length decides its preference"
        elif lead <= half:
            yield f"at equal length, {_undecided(judge, policy, baseline)}"


def _alone(summary: Mapping[str, Any], verdict: Verdict) -> str:
    """What the reward of a verdict says alone."""
    better = next((one.better for one in said(summary, verdict["policy"]) if one.rater == verdict["reward"]), 0)
    return {1: "gained", -1: "lost"}.get(better or 0, "nothing clear")


def _of_judge(policy: str, judge: str, result: Mapping[str, Any]) -> Iterator[str]:
    if reasons := unjudged(result):
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        yield (
            f"{judge} gave no verdict on {sum(reasons.values()):,} of {_count(result)} of {policy} ({why}); "
            "they are left out"
        )
    share = result.get("inconsistent")
    if (mean := bounds(share)[0]) is not None and mean > ORDER_DECIDES:
        yield f"the order of the answers decides {shown(share, percent=True)} of {judge}'s comparisons of {policy}"
    first = result.get("first_position")
    mean, low, high = bounds(first)
    if mean is None or low is None or high is None:
        return
    if abs(mean - 0.5) > FAVORS and not low <= 0.5 <= high:
        which = "first" if mean > 0.5 else "second"
        yield f"{judge} favors the {which} answer that it reads: it prefers the first in {shown(first, percent=True)}"


def unjudged(result: Mapping[str, Any]) -> dict[str, int]:
    """Comparisons without a verdict, by reason."""
    found = mapping(result.get("unjudged"))
    return {str(reason): int(count) for reason, value in found.items() if (count := number(value))}


def no_judges(summary: Mapping[str, Any]) -> Iterator[str]:
    """Why judges are none, from their cards in an evaluation.json or a reward_evaluation.json."""
    for name, card in (summary.get("judge_cards") or {}).items():
        if card.get("no_judge"):
            yield f"{name}: {card['no_judge']}"
