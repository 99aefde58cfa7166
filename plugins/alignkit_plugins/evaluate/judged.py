"""Judges as raters: every policy against the baseline, answer by answer, in both orders.

Sample k of a policy is compared with sample k of the baseline, and a prompt's comparisons are
averaged first. Equal answers are a tie, and no judge is asked. Comparisons without a verdict are
counted by their reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit import Group, Verdict
from alignkit.evaluation import statistics
from alignkit.judges import Item
from alignkit.reward import TIE
from alignkit_plugins.ai_feedback.judge_card import Compare, unjudged
from alignkit_plugins.compare.comparison import answers_of, unit_of
from alignkit_plugins.evaluate.length_control import length_controlled
from alignkit_plugins.formats.spoken import all_turns

DIFFICULTY = "instruction_difficulty"  # column of the prompts, as AlpacaEval names it


@dataclasses.dataclass(frozen=True)
class Judged:
    """A policy's comparisons with the baseline. verdicts: by prompt; P(policy is better) is
    `p_first`.

    People are asked about a prompt's first pair only, and perhaps not about all prompts.
    """

    verdicts: Sequence[Sequence[Verdict]]

    @property
    def preferences(self) -> list[float | None]:
        """The mean P(policy is better) at each prompt; None without a verdict."""
        known = [[v.p_first for v in row if v.p_first is not None] for row in self.verdicts]
        return [statistics.mean(row) if row else None for row in known]

    def of(self, place: int, sample: int) -> Verdict | None:
        """The verdict on a pair; None if nobody was asked about it."""
        row = self.verdicts[place]
        return row[sample] if sample < len(row) else None


def judge(groups: Sequence[Group], policy: str, baseline: str, compare: Compare) -> Judged:
    """Ask a judge about all answers of a policy."""
    pairs = [
        list(zip(answers_of(group, policy), answers_of(group, baseline), strict=True))
        for group in groups
    ]
    items: list[Item] = []
    for group, row in zip(groups, pairs, strict=True):
        items += [
            (list(group.prompt), all_turns(a), all_turns(b))
            for a, b in row
            if all_turns(a) != all_turns(b)
        ]
    verdicts = iter(compare(items))
    tie = Verdict(0.5)
    return Judged(
        [[tie if all_turns(a) == all_turns(b) else next(verdicts) for a, b in row] for row in pairs]
    )


def summary(groups: Sequence[Group], judged: Judged, policy: str, baseline: str) -> dict[str, Any]:
    """The results of a policy by one judge. A prompt is won if its mean P(policy is better) is
    above 0.5.
    """
    known = [(number, p) for number, p in enumerate(judged.preferences) if p is not None]
    preferences = [p for _, p in known]
    wins, losses = sum(p > 0.5 + TIE for p in preferences), sum(p < 0.5 - TIE for p in preferences)
    verdicts = [verdict for row in judged.verdicts for verdict in row]
    return {
        "preference": preference(preferences, [unit_of(groups[number]) for number, _ in known]),
        "standard_error": standard_error(preferences),
        "win_rate": statistics.share(wins, wins + losses),
        "wins": wins,
        "losses": losses,
        "ties": len(known) - wins - losses,
        "length_controlled": controlled(
            [groups[n] for n, _ in known], preferences, policy, baseline
        ),
        "comparisons": len(verdicts),
        "unjudged": dict(unjudged(verdicts).most_common()),
        "unjudged_prompts": sum(map(bool, judged.verdicts)) - len(known),
        **_orders(verdicts),
    }


def preference(values: Sequence[float], units: Sequence[Any]) -> statistics.Difference:
    """The mean of prompts' preferences with its interval, and the p value of a mean of 0.5. units:
    see `unit_of`.
    """
    draws = statistics.clustered(values, units)
    binary = len(draws) == len(values) and statistics.levels_of(values) == (0.0, 1.0)
    found = statistics.rate(values) if binary else probability(draws)
    gaps = statistics.differences(values, [0.5] * len(values))
    return {**found, "n": len(values), "p": statistics.clustered_p(gaps, units)}


def probability(values: Sequence[float]) -> statistics.Estimate:
    """The mean of probabilities with its t interval, which ends at 0 and 1: few values would reach
    beyond.
    """
    found = statistics.estimate(values)
    if found["low"] is None or found["high"] is None:
        return found
    return {**found, "low": max(0.0, found["low"]), "high": min(1.0, found["high"])}


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for fewer than two values."""
    from scipy import stats

    return float(stats.sem(values)) if len(values) > 1 else None


def _orders(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """What the order changed. P(first position) has the policy first once and the baseline first
    once.
    """
    orders = [
        verdict.p_orders for verdict in verdicts if verdict.p_first is not None and verdict.p_orders
    ]
    swayed = sum((first - 0.5) * (second - 0.5) < 0 for first, second in orders)
    positions = [(first + 1 - second) / 2 for first, second in orders]
    return {
        "inconsistent": statistics.share(swayed, len(orders)),
        "first_position": probability(positions),
    }


def controlled(
    groups: Sequence[Group], preferences: Sequence[float], policy: str, baseline: str
) -> dict[str, Any] | None:
    """The length-controlled win rate; None with fewer than 5 prompts. It uses the difficulty that
    all prompts have.
    """
    longer = [characters(group, policy) - characters(group, baseline) for group in groups]
    known = [group.meta.get(DIFFICULTY) for group in groups]
    numbers = [float(value) for value in known if isinstance(value, int | float)]
    found = length_controlled(preferences, longer, numbers if len(numbers) == len(groups) else None)
    return None if found is None else dict(found)


def characters(group: Group, policy: str) -> float:
    """The mean length of a policy's answers to a prompt, in characters."""
    return statistics.mean([len(all_turns(response)) for response in answers_of(group, policy)])


def summaries(
    groups: Sequence[Group], verdicts: Mapping[str, Mapping[str, Judged]], baseline: str | None
) -> dict[str, dict[str, Any]]:
    """The results of each policy but the baseline, by each judge."""
    return {
        policy: {
            name: summary(groups, found, policy, str(baseline)) for name, found in judges.items()
        }
        for policy, judges in verdicts.items()
    }
