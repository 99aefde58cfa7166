"""Verdicts of a judge on pairs of answers, and what they say of the judge: order, people, and
whether it is of use.

The unit of all intervals is a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.evaluation import statistics
from alignkit.reward import Verdict

if TYPE_CHECKING:
    from alignkit.evaluation.statistics import Estimate
    from alignkit_plugins.krippendorff import Agreement

# Share of questions, and the end of its interval, from which a judge names a position
ONE_POSITION, SURELY = 0.9, 0.8
USEFUL = 0.65  # agreement that a judge no better than chance must be clearly below
# Share of pairs decided by the order that a judge no better than chance must be clearly above
HALF_BY_ORDER = 1 / 3
CHANCE = 0.5


@dataclass(frozen=True)
class Judgment:
    """A verdict on two different answers.

    unit: its prompt. named_first: for each question, P(the answer that is shown first).
    """

    unit: int
    verdict: Verdict
    named_first: tuple[float, ...]


def judgment(unit: int, verdict: Verdict) -> Judgment:
    """A verdict whose first question showed the first answer first, and whose second one, if known,
    the other.
    """
    if verdict.p_first is None:
        return Judgment(unit, verdict, ())
    orders = verdict.p_orders
    return Judgment(unit, verdict, (orders[0], 1 - orders[1]) if orders else ())


def side(p: float | None) -> int | None:
    """1 if the first is better, -1 if the second is; None for a tie or without a verdict."""
    return None if p is None or Verdict(p).tied else 1 if p > CHANCE else -1


def unjudged(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Verdicts that are missing, by their reason without its details."""
    return Counter(
        v.reason.partition(":")[0] or "no reason given" for v in verdicts if v.p_first is None
    )


def named_first(judgments: Sequence[Judgment]) -> Estimate:
    """The share of questions that are answered with the answer that is shown first; a tie is half
    of one.
    """
    questions = [
        (each.unit, {1: 1.0, -1: 0.0}.get(side(p) or 0, 0.5))
        for each in judgments
        for p in each.named_first
    ]
    return by_unit(questions)


def by_unit(values: Iterable[tuple[int, float]]) -> Estimate:
    """The mean of values from 0 to 1, of which those of a unit are averaged first, with the
    interval of a rate.
    """
    units: dict[int, list[float]] = {}
    for unit, value in values:
        units.setdefault(unit, []).append(value)
    most = max(map(len, units.values()), default=1)
    return statistics.rate([statistics.mean(each) for each in units.values()], most)


def raters_agree(answers: Sequence[tuple[int, Any, Any]], seed: int) -> Agreement:
    """How far two raters agree, in percent and by Krippendorff's alpha. answers: prompt, and the
    answer of each.
    """
    from alignkit_plugins.krippendorff import agreement_of  # imports numpy

    clusters = [unit for unit, _, _ in answers]
    both = agreement_of([(one, other) for _, one, other in answers], clusters=clusters, seed=seed)
    return {
        "same": by_unit((unit, float(one == other)) for unit, one, other in answers),
        "alpha": both["alpha"],
    }


def with_people(
    judgments: Sequence[Judgment], preferred: Sequence[bool | None], seed: int
) -> dict[str, Any] | None:
    """How far a judge makes people's choice, over its questions, each with the place that both
    name.

    preferred: whether people prefer the answer that the judge's first question shows first; None if
    they do not say. A tie is no answer. None without any answer.
    """
    answers = []
    for each, first in zip(judgments, preferred, strict=True):
        for question, p in enumerate(each.named_first or [each.verdict.p_first]):
            named = side(p)
            if first is not None and named is not None:
                answers.append((each.unit, 1 if first == (question == 0) else -1, named))
    return {**raters_agree(answers, seed), "questions": len(answers)} if answers else None


# The verdict on the judge


def no_judge(card: Mapping[str, Any]) -> str:
    """Why the verdicts of a judge, or of a judge of a panel, are of no use, in words; empty if
    nothing says so.
    """
    reasons = [*_position(card), *_chance(card)]
    own = [f"its verdicts are of no use, because {' and '.join(reasons)}"] if reasons else []
    parts = (
        f"{name} in it: {part['no_judge']}"
        for name, part in card.get("members", {}).items()
        if part["no_judge"]
    )
    return "; ".join([*own, *parts])


def _position(card: Mapping[str, Any]) -> Iterable[str]:
    first = card["named_first"]
    if first["low"] is not None:
        second = (1 - first["mean"], 1 - first["high"])
        for which, mean, low in (("first", first["mean"], first["low"]), ("second", *second)):
            if mean >= ONE_POSITION and low > SURELY:
                yield f"it names the {which} answer that it reads in {mean:.0%} of questions"


def _chance(card: Mapping[str, Any]) -> Iterable[str]:
    """What is clearly near chance; a few pairs are not enough to say so."""
    people, swayed = (card.get("people") or {}).get("same"), card["inconsistent"]
    if people and people["low"] is not None and people["low"] <= CHANCE and people["high"] < USEFUL:
        yield (
            f"it agrees with people in {statistics.shown(people, percent=True)}, no better than "
            "chance"
        )
    if swayed["low"] is not None and swayed["low"] > HALF_BY_ORDER and swayed["high"] >= CHANCE:
        yield f"the order of the answers decides {statistics.shown(swayed, percent=True)} of pairs"
