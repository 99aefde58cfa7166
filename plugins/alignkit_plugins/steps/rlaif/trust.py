"""Whether the judge of `judge_pairs`, and each judge of a panel, is one at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Verdict
from alignkit.evaluation.judge_card import measured
from alignkit.evaluation.judge_quality import Judgment, judgment, no_judge, verdict_facts
from alignkit_plugins.steps.rlaif.principled import Asked
from alignkit_plugins.steps.rlaif.tally import Place

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
