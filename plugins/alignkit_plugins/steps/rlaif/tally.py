"""Statistics of judged pairs: labels, reasons for missing ones, position bias, agreement with people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit import Group, Verdict
from alignkit.evaluation import statistics
from alignkit.judges import costs
from alignkit_plugins.evaluate.judge_card import measured
from alignkit_plugins.evaluate.judge_quality import Judgment, judgment, no_judge, unjudged, verdict_facts
from alignkit_plugins.steps.rlaif.principled import Asked

Place = tuple[int, int, int]  # group, first response, second response


@dataclass
class Tally:
    """Statistics of the judged pairs."""

    groups: Sequence[Group]
    places: Sequence[Place]
    verdicts: Sequence[Verdict]
    identical: int

    def __post_init__(self) -> None:
        self.labeled = 0
        self.dropped: Counter[str] = Counter()

    @property
    def n(self) -> int:
        """Number of all pairs."""
        return len(self.places) + self.identical

    def summary(self) -> dict[str, Any]:
        """The statistics as JSON; an unknown one is None."""
        usable = [verdict for verdict in self.verdicts if verdict.p_first is not None]
        orders = [verdict.p_orders for verdict in usable if verdict.p_orders]
        unusable = unjudged(self.verdicts)
        if self.identical:
            unusable["identical responses"] += self.identical
        examples = {v.reason.partition(":")[0]: v.reason for v in self.verdicts if ":" in v.reason}
        return {
            "n": self.n,
            "groups_without_pairs": sum(len(group.responses) < 2 for group in self.groups),
            "labeled": self.labeled,
            "dropped": dict(self.dropped),
            "bounded": sum(verdict.bounded for verdict in usable),
            "unusable": dict(unusable.most_common()),
            "examples": examples,
            "position_bias": mean(map(float, inconsistent([v for v in self.verdicts if v.p_orders]))),
            "p_first_position": mean((first + 1.0 - second) / 2 for first, second in orders),
            "mass": mean(verdict.mass for verdict in usable),
            "agreement": self.agreement(),
            **costs(self.verdicts),
        }

    def agreement(self) -> dict[str, Any] | None:
        """How often the judge agrees with people, without ties on either side, and the 95% Wilson interval."""
        same = [
            (verdict.p_first > 0.5) == preferred
            for (g, i, j), verdict in zip(self.places, self.verdicts, strict=True)
            if verdict.p_first not in (None, 0.5) and (preferred := people_prefer(self.groups[g], i, j)) is not None
        ]
        agreement = statistics.share(sum(same), len(same))
        if agreement is None:
            return None
        return {"rate": agreement["mean"], "n": agreement["n"], "low": agreement["low"], "high": agreement["high"]}


def inconsistent(verdicts: Sequence[Verdict]) -> list[bool]:
    """Whether each verdict prefers the same position in both orders; false if the orders are unknown."""
    orders = [verdict.p_orders or (0.5, 0.5) for verdict in verdicts]
    return [(first - 0.5) * (second - 0.5) < 0 for first, second in orders]


def people_prefer(group: Group, i: int, j: int) -> bool | None:
    """Whether the data prefer response i to j, by pairs or else by ranks (1 is best); None if they do not say."""
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


def report(summary: Mapping[str, Any]) -> str:
    """The statistics as text."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    lines = [f"{summary['labeled']} of {summary['n']} pairs labeled"]
    if lone := summary["groups_without_pairs"]:
        lines.append(f"  left out, fewer than two responses: {lone} groups")
    lines += [f"  dropped, {why}: {count}" for why, count in summary["dropped"].items()]
    if summary["bounded"]:
        lines.append(
            f"  an answer outside the server's tokens counts with its largest probability: {summary['bounded']}"
        )
    lines += [f"  unusable, {summary['examples'].get(why, why)}: {count}" for why, count in summary["unusable"].items()]
    lines.append(f"same position preferred in both orders: {percent(summary['position_bias'])} of pairs")
    lines.append(f"mean P(first position): {percent(summary['p_first_position'])} (50% without position bias)")
    lines.append(f"mean probability of both answers: {percent(summary['mass'])}")
    if agreement := summary["agreement"]:
        interval = f"95% interval {percent(agreement['low'])} to {percent(agreement['high'])}, {agreement['n']} pairs"
        lines.append(f"agreement with the data's labels: {percent(agreement['rate'])} ({interval})")
    spent = [f"{summary[key]:,} {name}" for key, name in (("calls", "questions"), ("tokens", "tokens")) if summary[key]]
    spent += [] if summary["cost"] is None else [f"at a cost of {summary['cost']:,.4g}"]
    return "\n".join([*lines, *([", ".join(spent)] if spent else [])])


# Whether the judge, and each judge of a panel, is one at all


ENOUGH = 6  # prompts with a verdict, from which a judge is stopped; the order decides three pairs by chance
ANYWAY = "; `no_judge: warn` learns from its labels anyway"
HELP = (
    "help: ask another model; small models and models without instruction tuning often name one place. "
    "`reasons: true` lets a judge think first"
)


def trust_of(asked: Sequence[Asked], found: Sequence[Verdict], places: Sequence[Place]) -> dict[str, Any]:
    """`no_judge`: why it is none, or empty; of a panel also `members`, a card for each. The unit is a prompt."""
    known = measured(_judgments(asked, found, places))
    parts = {"members": known["members"]} if "members" in known else {}
    return {"no_judge": _one_place(found) or no_judge(known), **parts}


def surely_none(asked: Sequence[Asked], found: Sequence[Verdict], places: Sequence[Place]) -> str:
    """Why nothing should learn from these verdicts; empty otherwise. Of a panel only its own verdicts count."""
    judgments = _judgments(asked, found, places)
    prompts = {each.unit for each in judgments if each.verdict.p_first is not None}
    return no_judge(verdict_facts(judgments)) if len(prompts) >= ENOUGH else ""


def _judgments(asked: Sequence[Asked], found: Sequence[Verdict], places: Sequence[Place]) -> list[Judgment]:
    pairs = zip(asked, found, strict=True)
    return [judgment(places[each.pair][0], verdict, each.row[1], each.row[2]) for each, verdict in pairs]


def _one_place(found: Sequence[Verdict]) -> str:
    """Why a judge is none that names one place in all of a few questions; empty otherwise."""
    orders = [verdict.p_orders for verdict in found if verdict.p_first is not None]
    for which, sign in (("first", 1), ("second", -1)):
        if orders and all(p and sign * (p[0] - 0.5) > 0 > sign * (p[1] - 0.5) for p in orders):
            return f"this is no judge: it names the {which} answer that it reads in all {2 * len(orders)} questions"
    return ""


def none_labeled(judge: str, trust: Mapping[str, Any], told: str) -> str:
    """The message of a step without a label. told: its statistics."""
    text = f"judge_pairs: judge '{judge}': no pair was labeled\n{told}"
    return f"{text}\n{judge}: {trust['no_judge']}\n{HELP}" if trust["no_judge"] else text


def stopped(judge: str, reason: str, told: str) -> str:
    """The message of a step whose judge is none. told: its statistics."""
    return (
        f"judge_pairs: judge '{judge}': nothing should learn from its labels\n{told}\n{judge}: {reason}\n{HELP}{ANYWAY}"
    )
