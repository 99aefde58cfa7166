"""What an evaluation concludes of a policy, and by whom: by judges of its own, or by those that nothing was trained on.

A policy that was trained to please a reward gains by it even if people see no gain. Only a rater that it did not learn
from can say that it is better. Everything here reads the summary of `evaluate`, evaluation.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.evaluation.statistics import CONFIDENCE, holm, shown

BASE, DIVERSITY = "base", "diversity"  # mark comparisons that are not with the baseline, or not by a rater
ADVICE = "add `measures:` with a reward that nothing was trained on"


# By whether a policy learned from the rater by whom it gains.
GAINS = {False: "gained", True: "gained by its own reward", None: "gained, not verified"}


@dataclass(frozen=True)
class Said:
    """What a rater says of a policy against its baseline.

    better: 1 if the policy is clearly better, -1 if it is clearly worse, 0 if nothing is clear; None without a score.
    Clear is what stays so with all other comparisons of the evaluation (`statistics.holm`).
    own: whether the policy learned from the rater; None if that is not known. text: `facts right +20% [4, 36]`.
    """

    rater: str
    better: int | None
    own: bool | None
    text: str


@dataclass(frozen=True)
class Conclusion:
    """What all raters together say of a policy.

    outcome: what the headline says, the first rater that the policy did not learn from: `gained`, `lost` or
    `nothing clear`; `mixed`, if it gained and is clearly worse by another rater, or than the untouched base; `gained by
    its own reward`, if it learned from all raters; `gained, not verified`, if it is not known what it learned from; or
    `unknown` without scores. sentence: without its period.
    """

    outcome: str
    sentence: str


def own_of(summary: Mapping[str, Any], policy: str, rater: str) -> bool | None:
    """Whether a policy learned from a rater; None if that is not known."""
    return ((summary.get("trained_on") or {}).get(policy) or {}).get(rater)


def percent(summary: Mapping[str, Any], name: str | None) -> bool:
    """Whether a measure of an evaluation.json is a share of the answers."""
    measures = summary.get("measures")
    return bool(isinstance(measures, Mapping) and (measures.get(name) or {}).get("percent"))


def lower(summary: Mapping[str, Any], name: str | None) -> bool:
    """Whether lower scores are better by a measure of an evaluation.json."""
    return ((summary.get("measures") or {}).get(name) or {}).get("better") == "lower"


def oriented(summary: Mapping[str, Any], name: str | None, difference: Any) -> Any:
    """An estimate of a difference that is above 0 if the policy is better; None for None."""
    if difference is None or not lower(summary, name):
        return difference
    mean, low, high = (difference.get(key) for key in ("mean", "low", "high"))
    negated = [None if value is None else -value for value in (mean, high, low)]
    return {**difference, **dict(zip(("mean", "low", "high"), negated, strict=True))}


def lower_is_better(summary: Mapping[str, Any]) -> str:
    """A note on the measures of an evaluation.json whose lower scores are better; empty without any."""
    names = [name for name in summary.get("measures") or {} if lower(summary, name)]
    return f"lower is better: {', '.join(names)}" if names else ""


def titled(summary: Mapping[str, Any], name: str) -> str:
    """`facts right`, or `helpful (reward)`: the name of a reward alone would read as that of a model."""
    return name if name in (summary.get("measures") or {}) else f"{name} (reward)"


def said(summary: Mapping[str, Any], policy: str) -> list[Said]:
    """What each rater says that the verdict goes by: measures, the reward, reward models and judges."""
    clear = adjusted(summary)
    return [_said(summary, policy, rater, one, clear[policy, rater]) for rater, one in _rated(summary, policy).items()]


def _rated(summary: Mapping[str, Any], policy: str) -> dict[str, Mapping[str, Any]]:
    """The estimate by each rater that the verdict on a policy goes by."""
    against = (summary.get("against") or {}).get(policy) or {}
    names = [name for name in (summary.get("trained_on") or {}).get(policy) or {} if name in against]
    if not names and summary.get("headline") in against:
        names = [str(summary["headline"])]
    judges = ((summary.get("judged") or {}).get(policy) or {}).items()
    return {name: against[name]["difference"] for name in names} | {name: one["preference"] for name, one in judges}


def _policies(summary: Mapping[str, Any]) -> list[str]:
    """The policies that are compared with the baseline."""
    return list(dict.fromkeys([*(summary.get("against") or {}), *(summary.get("judged") or {})]))


def adjusted(summary: Mapping[str, Any]) -> dict[tuple[str, ...], float | None]:
    """Adjusted p values of all comparisons that an evaluation makes claims of, by policy and rater; behind these stands
    `BASE` for those with the untouched base model, and `DIVERSITY` for those of a measure of it.

    The headline is the last policy's. None: no prompt has scores for it, or an older alignkit, which went by intervals,
    recorded no p value.
    """
    policies = _policies(summary)
    found: dict[tuple[str, ...], Any]
    found = {(policy, name): one for policy in policies for name, one in _rated(summary, policy).items()}
    base = (summary.get("against_base") or {}).items()
    found |= {(policy, name, BASE): one for policy, over in base for name, one in over.items()}
    measured = {policy: (summary.get("policies") or {}).get(policy) or {} for policy in policies}
    found |= {
        (policy, name, DIVERSITY): one["difference"]
        for policy, measures in measured.items()
        for name, one in (measures.get("diversity") or {}).items()
        if one["difference"]
    }
    tested = {key: one["p"] for key, one in found.items() if one["mean"] is not None and one.get("p") is not None}
    lead = [key for key in tested if policies and key[0] == policies[-1] and len(key) == 2]
    headline = min(lead, key=lambda key: _trust(own_of(summary, *key[:2])), default=None)
    return dict.fromkeys(found) | holm(tested, headline)


def _trust(own: bool | None) -> int:
    """The order in which raters decide, by whether a policy learned from them."""
    return (False, None, True).index(own)


def _said(summary: Mapping[str, Any], policy: str, rater: str, found: Mapping[str, Any], p: float | None) -> Said:
    """What one comparison says. p: adjusted."""
    judge = rater in ((summary.get("judged") or {}).get(policy) or {})
    if judge:
        text, seen = f"{rater} {shown(found, percent=True)}", found
    else:
        text = f"{titled(summary, rater)} {shown(found, sign=True, percent=percent(summary, rater))}"
        seen = oriented(summary, rater, found)
    middle = 0.5 if judge else 0.0
    better = side({**seen, "p": p}, middle)
    if better is not None and p is not None and bool(better) != _excludes(found, middle):
        text += f" (adjusted p {p:.1g})"
    return Said(rater, better, own_of(summary, policy, rater), text)


def _excludes(found: Mapping[str, Any], middle: float) -> bool:
    """Whether the interval, which nothing adjusts, lies on one side of the middle."""
    return found["low"] is not None and not found["low"] <= middle <= found["high"]


def side(estimate: Mapping[str, Any], middle: float) -> int | None:
    """On which side of the middle a mean clearly is: 1, -1, or 0 if on none; None without a mean.

    Without a p value, the interval decides.
    """
    mean, p = estimate.get("mean"), estimate.get("p")
    if mean is None:
        return None
    if mean == middle or not (_excludes(estimate, middle) if p is None else p < 1 - CONFIDENCE):
        return 0
    return 1 if mean > middle else -1


def conclusion(summary: Mapping[str, Any], policy: str) -> Conclusion:
    """The conclusion on a policy that the evaluation compares with its baseline."""
    every, baseline = [one for one in said(summary, policy) if one.better is not None], summary["baseline"]
    below = _below_base(summary, policy)
    than_base = f"; worse than the untouched base: {', '.join(below)}" if below else ""
    if not every:
        text = f"{policy} and {baseline} cannot be compared: no prompt has a score for both"
        return Conclusion("unknown", f"{text}{than_base}")
    head = min(every, key=lambda one: _trust(one.own))
    others = [one for one in every if one is not head]
    found = head.text if policy == _policies(summary)[-1] else f"{head.text}, adjusted (Holm)"
    also = f"{_others(others)}{than_base}"
    if head.better == 0:
        return Conclusion("nothing clear", f"Nothing clear between {policy} and {baseline}: {found}{also}")
    if head.better == -1:
        return Conclusion("lost", f"{policy} lost against {baseline}: {found}{also}")
    gained = f"{policy} gained over {baseline}"
    if head.own is False:
        by = f"by an independent {_kind(summary, head)}"
        if below or any(one.better == -1 for one in others):
            return Conclusion("mixed", f"{gained} {by}, with losses elsewhere: {found}{also}")
        return Conclusion("gained", f"{gained} {by}: {found}{also}")
    if head.own:
        chosen = (summary.get("variants") or {}).get(policy, {}).get("best_of", 1) > 1
        how, why = " by its own reward", "its answers were chosen by it" if chosen else "it was trained to please it"
    else:
        how, why = ", not verified", f"it is not known whether {policy} was trained on it"
    return Conclusion(GAINS[head.own], f"{gained}{how}: {found}, but {why}{also}; {ADVICE}")


def _below_base(summary: Mapping[str, Any], policy: str) -> list[str]:
    over, clear = (summary.get("against_base") or {}).get(policy) or {}, adjusted(summary)
    compared = [_said(summary, policy, name, one, clear[policy, name, BASE]) for name, one in over.items()]
    return [one.text for one in compared if one.better == -1]


def _kind(summary: Mapping[str, Any], one: Said) -> str:
    if one.rater in (summary.get("measures") or {}):
        return "measure"
    return "reward" if one.rater in (summary.get("rewards") or ()) else "judge"


def _others(others: Sequence[Said]) -> str:
    """What the other raters of a policy say."""
    clear = {
        word: [f"{one.text}{', by its own judgment' if one.own else ''}" for one in others if one.better == way]
        for word, way in (("worse", -1), ("better", 1), ("unclear", 0))
    }
    told = "; ".join(f"{word}: {', '.join(texts)}" for word, texts in clear.items() if texts)
    return told and f"; the others, adjusted together (Holm), {told}"
