"""What a step says of pairs that a judge labeled: how many have a label, why others have none, and
of the judge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit import Group, Verdict
from alignkit_plugins.ai_feedback.judge_card import card, sentence
from alignkit_plugins.ai_feedback.judge_quality import judgment, no_judge, with_people
from alignkit_plugins.ai_feedback.principled import Asked

Place = tuple[int, int, int]  # group, first response, second response

# Prompts with a verdict, from which a judge is stopped; the order decides three pairs by chance
ENOUGH = 6
ANYWAY = "; `no_judge: warn` learns from its labels anyway"
HELP = (
    "help: ask another model; small models and models without instruction tuning often name one "
    "place. `reasons: true` lets a judge think first"
)


@dataclass
class Tally:
    """Statistics of the judged pairs. dropped: pairs without a label, by reason."""

    groups: Sequence[Group]
    places: Sequence[Place]
    verdicts: Sequence[Verdict]
    identical: int
    labeled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """The statistics as JSON; an unknown one is None."""
        usable = [verdict for verdict in self.verdicts if verdict.p_first is not None]
        first: dict[str, str] = {}  # the first reason of each kind, with its details
        missing = [
            verdict.reason or "no reason given"
            for verdict in self.verdicts
            if verdict.p_first is None
        ]
        reasons = Counter(first.setdefault(reason.partition(":")[0], reason) for reason in missing)
        if self.identical:
            reasons["identical responses"] = self.identical
        return {
            "n": len(self.places) + self.identical,
            "groups_without_pairs": sum(len(group.responses) < 2 for group in self.groups),
            "labeled": self.labeled,
            "dropped": {**self.dropped, **dict(reasons.most_common())},
            "bounded": sum(verdict.bounded for verdict in usable),
            "mass": mean(verdict.mass for verdict in usable),
        }


def card_of(
    asked: Sequence[Asked], found: Sequence[Verdict], tally: Tally, seed: int
) -> dict[str, Any]:
    """The card of the judge, whose unit is a prompt, with people's choices where the data have
    them.
    """
    places = [tally.places[each.pair] for each in asked]
    judgments = [judgment(place[0], verdict) for place, verdict in zip(places, found, strict=True)]
    preferred = [people_prefer(tally.groups[g], i, j) for g, i, j in places]
    return card(judgments, people=with_people(judgments, preferred, seed))


def people_prefer(group: Group, i: int, j: int) -> bool | None:
    """Whether the data prefer response i to j, by pairs or else by ranks (1 is best); None if they
    do not say.
    """
    if group.pairs is not None:
        for pair in group.pairs:
            if {pair.better, pair.worse} == {i, j} and pair.p != 0.5:
                return (pair.better == i) == (pair.p > 0.5)
        return None
    first, second = group.responses[i].rank, group.responses[j].rank
    if first is None or second is None or first == second:
        return None
    return first < second


def mean(values: Iterable[float]) -> float | None:
    """The average, or None without values."""
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def told(summary: Mapping[str, Any]) -> list[str]:
    """The statistics as text: what matters, and the rest."""
    ((judge, card),) = summary["judge_cards"].items()
    lines = [
        f"{count} of {summary['n']} pairs dropped: {why}"
        for why, count in summary["dropped"].items()
    ]
    if lone := summary["groups_without_pairs"]:
        lines.append(f"rows with fewer than two responses: {lone}")
    if bounded := summary["bounded"]:
        lines.append(
            "answers outside the server's tokens, which count with their largest probability: "
            f"{bounded}"
        )
    if (mass := summary["mass"]) is not None:
        lines.append(f"mean probability of both answers: {mass:.1%}")
    for name, one in summary.get("principles", {}).items():
        same = (
            ""
            if one["with_the_mean"] is None
            else f", {one['with_the_mean']:.0%} as by all principles together"
        )
        lines.append(
            f"principle {name}: {one['comparisons']} comparisons, {one['unusable']} without a "
            f"verdict{same}"
        )
    first = f"{summary['labeled']} of {summary['n']} pairs labeled\n{sentence(judge, card)}"
    return [first, *(["\n".join(lines)] if lines else [])]


def refusal(summary: Mapping[str, Any], what_next: str) -> str:
    """Why nothing can learn from the labels; empty if something can. what_next: the option
    `no_judge`.

    Of a panel, only its own verdicts count, not those of its judges.
    """
    ((name, card),) = summary["judge_cards"].items()
    enough = card["named_first"]["n"] >= ENOUGH and what_next == "stop"
    if not summary["labeled"]:
        why, anyway = "no pair was labeled", ""
    elif enough and no_judge({**card, "members": {}}):
        why, anyway = "nothing should learn from its labels", ANYWAY
    else:
        return ""
    return "\n".join([f"judge_pairs: judge '{name}': {why}", *told(summary), f"{HELP}{anyway}"])
