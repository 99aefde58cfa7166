"""What an evaluation says in one plain sentence per policy, and what should make its reader doubt it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from alignkit.evaluation.statistics import bought_with_length
from alignkit_plugins.evaluate.readable import bounds, number, short, shown
from alignkit_plugins.evaluate.who_judged import conclusion, titled

LONGER = 0.2  # share by which lengths may differ without a warning
HIGH_KL = 20.0  # nats per response
TRUNCATED = 0.2  # share of answers


class Verdict(TypedDict):
    """A policy against the baseline, by a reward or a judge; the other is empty. outcome: as in
    `alignkit_plugins.evaluate.who_judged`, by all raters for a reward, and by itself for a judge.

    difference, at_equal_length, win_rate, preference, length_controlled: as in evaluation.json; None for the other kind
    of rater.
    longer: share by which its answers are longer. kl: to the reference, in nats. Both are None if unknown.
    """

    stage: str
    policy: str
    baseline: str
    reward: str
    judge: str
    outcome: str
    sentence: str
    difference: Any
    at_equal_length: Any
    win_rate: Any
    preference: Any
    length_controlled: Any
    longer: float | None
    kl: float | None


def verdicts(stage: str, summary: Mapping[str, Any]) -> list[Verdict]:
    """A verdict per policy that an evaluation.json compares with its baseline; the numbers are of its headline."""
    return [_verdict(stage, summary, str(policy)) for policy in summary.get("against") or {}]


def _verdict(stage: str, summary: Mapping[str, Any], policy: str) -> Verdict:
    reward, concluded = str(summary["headline"]), conclusion(summary, policy)
    verdict = verdict_of(stage, summary, policy, concluded.outcome, summary["against"][policy][reward], reward=reward)
    return {**verdict, "sentence": f"{concluded.sentence}.{_about(verdict, summary)}"}


def verdict_of(
    stage: str,
    summary: Mapping[str, Any],
    policy: str,
    outcome: str,
    result: Mapping[str, Any],
    *,
    reward: str = "",
    judge: str = "",
) -> Verdict:
    """A verdict without its sentence. result: of the reward or the judge."""
    baseline = str(summary["baseline"])
    return {
        "stage": stage,
        "policy": policy,
        "baseline": baseline,
        "reward": reward,
        "judge": judge,
        "outcome": outcome,
        "sentence": "",
        "difference": result.get("difference"),
        "at_equal_length": result.get("at_equal_length"),
        "win_rate": result.get("win_rate"),
        "preference": result.get("preference"),
        "length_controlled": result.get("length_controlled"),
        "longer": longer_by(summary, policy, baseline),
        "kl": bounds(summary["policies"][policy].get("kl"))[0],
    }


def _about(verdict: Verdict, summary: Mapping[str, Any]) -> str:
    """The prompts, the lengths and the KL behind a conclusion."""
    policy, reward = verdict["policy"], verdict["reward"]
    if verdict["outcome"] == "unknown" or bounds(verdict["difference"])[0] is None:
        return ""
    ties = summary["against"][policy][reward].get("ties")
    which = "those that are not tied" if ties else "them"
    text = f" By {titled(summary, reward)}, over {short(verdict['difference'].get('n'))} prompts, {policy} "
    text += (
        f"won {shown(verdict['win_rate'], percent=True)} of {which}." if verdict["win_rate"] else "tied at all of them."
    )
    measured = reward in (summary.get("measures") or {})
    text += _about_length(verdict, measured) + ("" if measured else _bought(verdict))
    if verdict["kl"] is not None and summary.get("reference") is not None:
        text += f" KL to {summary['reference']}: {verdict['kl']:.2g} nats."
    return text


def _about_length(verdict: Verdict, measured: bool) -> str:
    """measured: by a measure, which no length fools."""
    longer, equal = verdict["longer"], verdict["at_equal_length"]
    if longer is None:
        return ""
    same = abs(longer) < 0.005
    text = " Answers are " + ("equally long" if same else f"{abs(longer):.0%} {'longer' if longer > 0 else 'shorter'}")
    if equal is not None and not measured:
        return f"{text}; at equal length the difference is {shown(equal, sign=True)}."
    return f"{text}." if same or measured else f"{text}; too few have similar lengths to correct for that."


def _bought(verdict: Verdict) -> str:
    """What most of a gain was bought with, if that is length."""
    if not verdict["longer"] or not bought_with_length(verdict["difference"], verdict["at_equal_length"]):
        return ""
    what = "length" if verdict["longer"] > 0 else "brevity"
    return f" {verdict['policy']} bought most of its reward with {what}."


def longer_by(summary: Mapping[str, Any], policy: str, baseline: str) -> float | None:
    """The share by which a policy's answers are longer than the baseline's; None if unknown."""
    ours, theirs = (bounds(summary["policies"][name].get("length"))[0] for name in (policy, baseline))
    return None if ours is None or not theirs else ours / theirs - 1


def doubts(summary: Mapping[str, Any], found: list[Verdict]) -> Iterator[str]:
    """Warnings about an evaluation. What judges did is in `judging.doubts`."""
    yield from (note.removeprefix("warning: ") for note in summary.get("notes", ()) if note.startswith("warning: "))
    if left_out := summary.get("left_out"):
        yield f"{left_out} prompts were left out, because they and their answers do not fit"
    for policy in dict.fromkeys(verdict["policy"] for verdict in found):
        yield from _doubts(next(verdict for verdict in found if verdict["policy"] == policy))
    cut = []
    for name, policy in summary.get("policies", {}).items():
        if (number(policy.get("truncated")) or 0.0) > TRUNCATED:
            cut.append(f"{policy['truncated']:.0%} of {name}")
        for reward, estimate in policy["rewards"].items():
            if estimate.get("unscored"):
                yield f"{estimate['unscored']} answers of {name} have no score by {reward}; they are left out"
    if cut:
        yield f"many answers were cut off at max_new_tokens: {', '.join(cut)}"


def _doubts(verdict: Verdict) -> Iterator[str]:
    policy, longer, equal = verdict["policy"], verdict["longer"], verdict["at_equal_length"]
    if longer is not None and abs(longer) > LONGER:
        than = f"{'longer' if longer > 0 else 'shorter'} than those of {verdict['baseline']}"
        rater = "judges" if verdict["judge"] else "rewards"
        yield f"answers of {policy} are {abs(longer):.0%} {than}, and {rater} often depend on length"
    if verdict["outcome"] not in ("nothing clear", "unknown") and equal is not None:
        _, low, high = bounds(equal)
        if low is not None and high is not None and low <= 0 <= high:
            yield f"at equal length, nothing is clear between {policy} and {verdict['baseline']}"
    if verdict["kl"] is not None and verdict["kl"] > HIGH_KL:
        yield f"{policy} is {verdict['kl']:.3g} nats from the reference; so far away, a reward model is often fooled"
