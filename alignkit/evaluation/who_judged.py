"""What an evaluation concludes of a policy, and by whom: by judges of its own, or by those that nothing was trained on.

A policy that was trained to please a reward gains by it even if people see no gain. Only a rater that it did not learn
from can say that it is better. Everything here reads the summary of `evaluate`, evaluation.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.evaluation.statistics import shown

ADVICE = "add `measures:` with a reward that nothing was trained on"


# By whether a policy learned from the rater by whom it gains.
GAINS = {False: "gained", True: "gained by its own reward", None: "gained, not verified"}


@dataclass(frozen=True)
class Said:
    """What a rater says of a policy against its baseline.

    better: 1 if the policy is clearly better, -1 if it is clearly worse, 0 if nothing is clear; None without a score.
    own: whether the policy learned from the rater; None if that is not known. text: `facts right +20% [4, 36]`.
    """

    rater: str
    better: int | None
    own: bool | None
    text: str


@dataclass(frozen=True)
class Conclusion:
    """What all raters together say of a policy.

    outcome: `gained` by an independent rater, and lost by none; `mixed`; `lost`; `gained by its own reward`;
    `gained, not verified`, if it is not known what it learned from; `nothing clear`; or `unknown` without scores.
    sentence: without its period.
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
    if name in (summary.get("measures") or {}) or name in (summary.get("combinations") or {}):
        return reward_name(summary, name)
    return f"{name} (reward)"


def reward_name(summary: Mapping[str, Any], name: str) -> str:
    """`facts right`, or `reward llama2 (combination of helpful and safety)`, if `combinations` names its parts."""
    parts = (summary.get("combinations") or {}).get(name)
    return f"reward {name} (combination of {' and '.join(parts)})" if parts else name


def said(summary: Mapping[str, Any], policy: str) -> list[Said]:
    """What each rater says that the verdict goes by: measures, the reward, reward models and judges."""
    own = (summary.get("trained_on") or {}).get(policy) or {}
    against = (summary.get("against") or {}).get(policy) or {}
    found = [_by_score(summary, name, against[name]["difference"], own.get(name)) for name in own if name in against]
    if not found and summary.get("headline") in against:
        name = str(summary["headline"])
        found = [_by_score(summary, name, against[name]["difference"], None)]
    for judge, result in ((summary.get("judged") or {}).get(policy) or {}).items():
        preference = result["preference"]
        text = f"{judge} {shown(preference, percent=True)}"
        found.append(Said(judge, side(preference, 0.5), own_of(summary, policy, judge), text))
    return found


def _by_score(summary: Mapping[str, Any], name: str, difference: Mapping[str, Any], own: bool | None) -> Said:
    text = f"{titled(summary, name)} {shown(difference, sign=True, percent=percent(summary, name))}"
    return Said(name, side(oriented(summary, name, difference), 0.0), own, text)


def side(estimate: Mapping[str, Any], middle: float) -> int | None:
    """On which side of the middle the whole interval lies: 1, -1, or 0 if on none; None without a mean."""
    mean, low, high = (estimate.get(key) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    if low is None or high is None or low <= middle <= high:
        return 0
    return 1 if low > middle else -1


def conclusion(summary: Mapping[str, Any], policy: str) -> Conclusion:
    """The conclusion on a policy that the evaluation compares with its baseline.

    A policy that gained over its baseline and is worse than the untouched base model has mixed results.
    """
    found, lost = _conclusion(summary, policy), _below_base(summary, policy)
    if not lost:
        return found
    outcome = "mixed" if found.outcome == "gained" else found.outcome
    return Conclusion(outcome, f"{found.sentence}; worse than the untouched base: {_and(lost)}")


def _below_base(summary: Mapping[str, Any], policy: str) -> list[str]:
    over = (summary.get("against_base") or {}).get(policy) or {}
    compared = [_by_score(summary, name, difference, False) for name, difference in over.items()]
    return [one.text for one in compared if one.better == -1]


def _conclusion(summary: Mapping[str, Any], policy: str) -> Conclusion:
    every, baseline = said(summary, policy), summary["baseline"]
    gains = {own: _texts(every, 1, own) for own in (False, True, None)}
    losses = {own: _texts(every, -1, own) for own in (False, True, None)}
    outcome = _outcome(every, gains, losses)
    if outcome == "unknown":
        return Conclusion(outcome, f"{policy} and {baseline} cannot be compared: no prompt has a score for both")
    if outcome == "nothing clear":
        return Conclusion(outcome, f"Nothing clear between {policy} and {baseline}: {_all(every)}")
    if outcome == "mixed":
        who = f" by {_who(summary, every)}" if gains[False] else ""
        text = f"{policy} gained over {baseline}{who}: {_and(_tagged(gains))}; but is worse by {_and(_tagged(losses))}"
        return Conclusion(outcome, text)
    if outcome == "lost":
        return Conclusion(
            outcome, f"{policy} lost against {baseline}: {_and([t for own in losses.values() for t in own])}"
        )
    if outcome == "gained":
        own = f"; by what it was trained on: {_and(gains[True])}" if gains[True] else ""
        text = f"{policy} gained over {baseline} by {_who(summary, every)}: {_and(gains[False])}{own}"
        return Conclusion(outcome, text)
    unclear = f"; independent, and unclear: {_and(_texts(every, 0, False))}" if _texts(every, 0, False) else ""
    if outcome == "gained by its own reward":
        chosen = (summary.get("variants") or {}).get(policy, {}).get("best_of", 1) > 1
        how = "its answers were chosen by" if chosen else "it was trained to please"
        why = f"{how} {'them' if len(gains[True]) > 1 else 'it'}"
        text = f"{policy} gained over {baseline} by its own reward: {_and(gains[True])}, but {why}{unclear}"
    else:
        why = f"it is not known whether {policy} was trained on {'them' if len(gains[None]) > 1 else 'it'}"
        text = f"{policy} gained over {baseline}, not verified: {_and(gains[None])}, but {why}{unclear}"
    return Conclusion(outcome, text if any(one.own is False for one in every) else f"{text}; {ADVICE}")


def _tagged(texts: Mapping[Any, Sequence[str]]) -> list[str]:
    return [*texts[False], *(f"{text}, by its own judgment" for text in texts[True]), *texts[None]]


def _outcome(every: Sequence[Said], gains: Mapping[Any, Any], losses: Mapping[Any, Any]) -> str:
    if all(one.better is None for one in every):
        return "unknown"
    gained, lost = any(gains.values()), any(losses.values())
    if lost:
        return "mixed" if gained else "lost"
    if gains[False]:
        return "gained"
    if gained:
        return "gained by its own reward" if gains[True] else "gained, not verified"
    return "nothing clear"


def _who(summary: Mapping[str, Any], every: Sequence[Said]) -> str:
    """By whom a policy gains that gains by independent raters."""
    names = {one.rater for one in every if one.better == 1 and one.own is False}
    return f"independent {'measures' if names <= set(summary.get('measures') or {}) else 'judges'}"


def _texts(every: Sequence[Said], better: int, own: bool | None) -> list[str]:
    return [one.text for one in every if one.better == better and one.own is own]


def _all(every: Sequence[Said]) -> str:
    return _and([one.text for one in every if one.better is not None])


def _and(texts: Sequence[str]) -> str:
    return ", ".join(texts)
