"""Judges as raters: every policy against the baseline, answer by answer, in both orders, and how
far to trust them.

Sample k of a policy is compared with sample k of the baseline, and a prompt's comparisons are
averaged first. Equal answers are a tie, and no judge is asked. Comparisons without a verdict are
counted by their reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit import Group, Verdict
from alignkit.contract.reward import Item
from alignkit.data.group import length
from alignkit.evaluation import statistics
from alignkit_plugins.ai_feedback.judge_card import Compare, judge_card, side
from alignkit_plugins.compare.comparison import answers_of, units_of
from alignkit_plugins.compare.rows import ANSWERS, COIN, POINTS, Row
from alignkit_plugins.compare.scores import (
    Measure,
    Scale,
    Score,
    Scores,
    average,
    prompts_in,
    shifted,
)
from alignkit_plugins.text.spoken import as_judged, for_judges

EQUAL = Verdict(COIN)  # equal answers are not judged

Judged = Sequence[Sequence[Verdict]]  # by prompt and sample; P(the policy is better) is `p_first`


def judge(groups: Sequence[Group], policy: str, baseline: str, compare: Compare) -> Judged:
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


def add(
    scores: Scores,
    groups: Sequence[Group],
    verdicts: Mapping[str, Judged],
    baseline: str,
    name: str,
    trained_on: Mapping[str, bool | None],
) -> None:
    """Add what a judge says of policies: the mean P(policy is better) at each prompt, which is won
    if that is above 0.5. The baseline has 0.5.
    """
    scale = Preference(None)
    measure = Measure("judge", scale, percent=True, tested=True, trained_on=trained_on)
    scores.measures[name] = measure
    for policy, every in {**verdicts, baseline: [[EQUAL]] * len(groups)}.items():
        for group, (prompt, unit), own in zip(groups, prompts_in(groups), every, strict=True):
            p = average(verdict.p_first for verdict in own)
            tokens = average(map(length, answers_of(group, policy)))
            won = float(side(p) or 0)
            scores.rows.append(Score(name, policy, prompt, p, unit, 0, tokens, won, p is None))


class Preference(Scale):
    """The scale of preferences between a policy and its baseline, which are compared with 0.5."""

    def mean(self, values: Sequence[float], units: Sequence[Any]) -> statistics.Difference:
        """The mean with its interval, and the p value of a mean of 0.5.

        A judge that is nearly always equally sure looks certain to a t test of few prompts: of 6
        such intervals, 2 cover the mean. Therefore two prompts are added, one won and one lost, as
        in `statistics.paired_rates`: at least 19 of 20 do.
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

    def difference(
        self, ours: Sequence[float], theirs: Sequence[float], units: Sequence[Any]
    ) -> dict[str, Any]:
        estimate = self.mean(ours, units)
        return {**shifted(estimate, -COIN), "p": estimate["p"]}


def points(rows: Sequence[Row]) -> list[Row]:
    """What judges' preferences are in points (Bradley and Terry 1952), for which 400 are odds of ten
    to one. All are compared with the baseline alone, so that the likeliest points above it are
    those of each share, and its ends are theirs; a share of 0 or 1 has none.
    """
    found = list[Row]()
    for row in rows:
        if row.kind == "judge":
            ends = {name: _points(row.estimate[name]) for name in ("mean", "low", "high")}
            estimate = {**ends, "n": row.estimate["n"]}
            found.append(Row(row.policy, POINTS.format(row.metric), ANSWERS, estimate))
    return found


def _points(share: float | None) -> float | None:
    return 400 * math.log10(share / (1 - share)) if share and share < 1 else None


def card_of(groups: Sequence[Group], verdicts: Iterable[Judged]) -> dict[str, Any]:
    """The card of a judge: how far to trust what it says of the policies (see `card`)."""
    judgments, units = [], units_of(groups)
    for of_policy in verdicts:
        for unit, own in zip(units, of_policy, strict=True):
            judgments += [(unit, verdict) for verdict in own if verdict is not EQUAL]
    return judge_card(judgments)
