"""Judges as raters: every policy against the baseline, answer by answer, in both orders, and how
far to trust them.

Sample k of a policy is compared with sample k of the baseline, and a prompt's comparisons are
averaged first. Equal answers are a tie, and no judge is asked. Comparisons without a verdict are
counted by their reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Group, Response, Verdict
from alignkit.evaluation import statistics
from alignkit.judges import Item
from alignkit.reward import TIE
from alignkit_plugins.ai_feedback.judge_card import (
    Compare,
    Judgment,
    card,
)
from alignkit_plugins.compare.comparison import answers_of, unit_of
from alignkit_plugins.compare.rows import ENDS, Row
from alignkit_plugins.evaluate.length_control import length_controlled
from alignkit_plugins.formats.spoken import all_turns

DIFFICULTY = "instruction_difficulty"  # column of the prompts, as AlpacaEval names it
STANDARD_ERRORS = 1.96  # of half an interval of 95%
COIN = 0.5
EQUAL = Verdict(COIN)  # of equal answers

Verdicts = Sequence[Sequence[Verdict]]  # by prompt and sample; P(the policy is better) is `p_first`
ByPolicy = Mapping[str, Mapping[str, Verdicts]]  # of each judge


def answer_pairs(group: Group, policy: str, baseline: str) -> list[tuple[Response, Response]]:
    """Sample k of a policy with sample k of the baseline."""
    return list(zip(answers_of(group, policy), answers_of(group, baseline), strict=True))


def judge(groups: Sequence[Group], policy: str, baseline: str, compare: Compare) -> Verdicts:
    """Ask a judge about all answers of a policy."""
    items: list[Item] = []
    for group in groups:
        for ours, theirs in answer_pairs(group, policy, baseline):
            if all_turns(ours) != all_turns(theirs):
                items.append((list(group.prompt), all_turns(ours), all_turns(theirs)))
    said = iter(compare(items))
    verdicts = []
    for group in groups:
        pairs = answer_pairs(group, policy, baseline)
        verdicts.append([EQUAL if all_turns(a) == all_turns(b) else next(said) for a, b in pairs])
    return verdicts


def preferences(verdicts: Verdicts) -> list[float | None]:
    """The mean P(policy is better) at each prompt; None without a verdict."""
    found = list[float | None]()
    for row in verdicts:
        known = [verdict.p_first for verdict in row if verdict.p_first is not None]
        found.append(statistics.mean(known) if known else None)
    return found


def row(
    groups: Sequence[Group], verdicts: Verdicts, policy: str, baseline: str, name: str, **facts: Any
) -> Row:
    """What a judge says of a policy. A prompt is won if its mean P(policy is better) is above
    0.5.
    """
    known = [
        (group, p) for group, p in zip(groups, preferences(verdicts), strict=True) if p is not None
    ]
    values = [p for _, p in known]
    estimate: Mapping[str, Any] = preference(values, [unit_of(group) for group, _ in known])
    gap = {end: None if estimate[end] is None else estimate[end] - COIN for end in ENDS}
    wins, losses = sum(p > COIN + TIE for p in values), sum(p < COIN - TIE for p in values)
    return Row(
        policy,
        name,
        "judge",
        estimate,
        baseline,
        {**gap, "p": estimate["p"]},
        equal_length=controlled([group for group, _ in known], values, policy, baseline),
        win_rate=statistics.share(wins, wins + losses) or {},
        counts=f"{wins}/{losses}/{len(values) - wins - losses}",
        percent=True,
        missing=sum(map(bool, verdicts)) - len(values),
        **facts,
    )


def preference(values: Sequence[float], units: Sequence[Any]) -> statistics.Difference:
    """The mean of prompts' preferences with its interval, and the p value of a mean of 0.5. units:
    see `unit_of`.
    """
    draws = statistics.clustered(values, units)
    if len(draws) == len(values) and statistics.levels_of(values) == (0.0, 1.0):
        found = statistics.rate(values)
    else:
        found = statistics.of_share(statistics.estimate(draws))
    gaps = statistics.differences(values, [COIN] * len(values))
    return {**found, "n": len(values), "p": statistics.clustered_p(gaps, units)}


def controlled(
    groups: Sequence[Group], values: Sequence[float], policy: str, baseline: str
) -> dict[str, Any]:
    """The length-controlled win rate with its interval; empty with fewer than 5 prompts.

    It uses the difficulty that all prompts have.
    """
    longer = [characters(group, policy) - characters(group, baseline) for group in groups]
    difficulty = [group.meta.get(DIFFICULTY) for group in groups]
    known = [float(value) for value in difficulty if isinstance(value, int | float)]
    found = length_controlled(values, longer, known if len(known) == len(groups) else None)
    if found is None:
        return {}
    half = STANDARD_ERRORS * found["standard_error"]
    return {
        "mean": found["mean"],
        "low": found["mean"] - half,
        "high": found["mean"] + half,
        "n": found["n"],
    }


def characters(group: Group, policy: str) -> float:
    """The mean length of a policy's answers to a prompt, in characters."""
    return statistics.mean([len(all_turns(response)) for response in answers_of(group, policy)])


def cards(groups: Sequence[Group], verdicts: ByPolicy, baseline: str) -> dict[str, dict[str, Any]]:
    """The card of each judge: how far to trust what it prefers (see `card`).

    verdicts: by policy and judge.
    """
    judgments: dict[str, list[Judgment]] = {}
    for policy, judged in verdicts.items():
        for place, group in enumerate(groups):
            for sample, (ours, theirs) in enumerate(answer_pairs(group, policy, baseline)):
                if all_turns(ours) == all_turns(theirs):
                    continue
                for name, found in judged.items():
                    judgments.setdefault(name, []).append((place, found[place][sample]))
    return {name: card(of_judge) for name, of_judge in judgments.items()}
