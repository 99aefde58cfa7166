"""Judges as raters: every policy against the baseline, answer by answer, in both orders, and how
far to trust them.

Sample k of a policy is compared with sample k of the baseline, and a prompt's comparisons are
averaged first. Equal answers are a tie, and no judge is asked. Comparisons without a verdict are
counted by their reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Group, Verdict
from alignkit.data.group import length
from alignkit.evaluation import statistics
from alignkit.judges import Item
from alignkit.reward import TIE
from alignkit_plugins.ai_feedback.judge_card import Compare, card
from alignkit_plugins.compare.compared import wins
from alignkit_plugins.compare.comparison import answers_of, units_of
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.formats.spoken import as_judged, for_judges

COIN = 0.5
EQUAL = Verdict(COIN)  # equal answers are not judged

Verdicts = Sequence[Sequence[Verdict]]  # by prompt and sample; P(the policy is better) is `p_first`


def judge(groups: Sequence[Group], policy: str, baseline: str, compare: Compare) -> Verdicts:
    """Ask a judge about all answers of a policy."""
    items: list[Item] = []
    for group in groups:
        for ours, theirs in _texts(group, policy, baseline):
            if ours != theirs:
                items.append((for_judges(group), ours, theirs))
    verdicts, answered = list[list[Verdict]](), iter(compare(items))
    for group in groups:
        own = list[Verdict]()
        for ours, theirs in _texts(group, policy, baseline):
            own.append(EQUAL if ours == theirs else next(answered))
        verdicts.append(own)
    return verdicts


def _texts(group: Group, policy: str, baseline: str) -> list[tuple[str, str]]:
    """Sample k of a policy with sample k of the baseline, as judges read them."""
    sides = answers_of(group, policy), answers_of(group, baseline)
    return [(as_judged(ours), as_judged(theirs)) for ours, theirs in zip(*sides, strict=True)]


def preferences(verdicts: Verdicts) -> list[float | None]:
    """The mean P(policy is better) at each prompt; None without a verdict."""
    means = list[float | None]()
    for row in verdicts:
        known = [verdict.p_first for verdict in row if verdict.p_first is not None]
        means.append(statistics.mean(known) if known else None)
    return means


def row(
    groups: Sequence[Group], verdicts: Verdicts, policy: str, baseline: str, name: str, **facts: Any
) -> Row:
    """What a judge says of a policy. A prompt is won if its mean P(policy is better) is above
    0.5.
    """
    judged, values, gaps = list[Group](), list[float](), list[float]()
    for group, p in zip(groups, preferences(verdicts), strict=True):
        if p is not None:
            judged.append(group)
            values.append(p)
            gaps.append(p - COIN)
    units = units_of(judged)
    won = wins([gap if abs(gap) > TIE else 0.0 for gap in gaps], units)
    estimate = preference(values, units)
    ours, theirs = lengths(judged, policy), lengths(judged, baseline)
    longer = statistics.differences(ours, theirs)
    equal_length: Any = statistics.at_equal_length(gaps, longer, theirs, units)
    return Row(
        policy,
        name,
        "judge",
        estimate,
        baseline,
        {**_shifted(estimate, -COIN), "p": estimate["p"]},
        equal_length=_shifted(equal_length or {}, COIN),
        percent=True,
        missing=sum(map(bool, verdicts)) - len(values),
        **won,
        **facts,
    )


def _shifted(estimate: Mapping[str, Any], by: float) -> dict[str, Any]:
    """The mean and the interval of an estimate, moved."""
    moved = dict[str, Any]()
    for end in ("mean", "low", "high"):
        value = estimate.get(end)
        if value is not None:
            moved[end] = value + by
    return moved


def lengths(groups: Sequence[Group], policy: str) -> list[float]:
    """The mean length of a policy's answers to each prompt, in tokens."""
    means = list[float]()
    for group in groups:
        own = list(map(length, answers_of(group, policy)))
        means.append(statistics.mean(own))
    return means


def preference(values: Sequence[float], units: Sequence[Any]) -> statistics.Difference:
    """The mean of prompts' preferences with its interval, and the p value of a mean of 0.5. units:
    see `units_of`.

    A judge that is nearly always equally sure looks certain to a t test of few prompts: of 6 such
    intervals, 2 cover the mean. Therefore two prompts are added, one won and one lost, as in
    `statistics.paired_rates`: at least 19 of 20 do.
    """
    draws, added = statistics.clustered(values, units), list[float]()
    gaps = statistics.differences(values, [COIN] * len(values))
    share = statistics.estimate(draws)
    if len(draws) == len(values) and statistics.levels_of(values) == (0.0, 1.0):
        share = statistics.rate(values)
    elif any(gaps):
        added = [COIN, -COIN]
        wider = statistics.of_share(statistics.estimate([*draws, 0.0, 1.0]))
        share |= {"low": wider["low"], "high": wider["high"]}
    return {**share, "p": statistics.clustered_p(gaps, units, added)}


def card_of(groups: Sequence[Group], verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """The card of a judge: how far to trust what it says of the policies (see `card`)."""
    judgments, units = [], units_of(groups)
    for of_policy in verdicts:
        for unit, own in zip(units, of_policy, strict=True):
            judgments += [(unit, verdict) for verdict in own if verdict is not EQUAL]
    return card(judgments)
