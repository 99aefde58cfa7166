"""Judges as raters of people's pairs: how often, and how far beyond chance, a judge makes the same
choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignkit import CheckedJudge, Group, StepContext, Verdict, seeds
from alignkit.judges import Item
from alignkit_plugins.ai_feedback.judge_card import Judgment, card, mapped, with_people
from alignkit_plugins.compare.pairs import Choice, Comparison, choices
from alignkit_plugins.formats.spoken import all_turns


def judged(
    name: str, judge: CheckedJudge, groups: Sequence[Group], context: StepContext
) -> tuple[list[Comparison], dict[str, Any]]:
    """A judge's choices as comparisons, whose scores are its probabilities, and its card.

    Half of the pairs, drawn by the seed, have the chosen response first: a judge that ignores its
    duty to ask in both orders must not learn the answer from the place. Pairs of equal texts are
    ties, and no judge is asked.
    """
    every = list(choices(groups))
    asked = [choice for choice in every if all_turns(choice.better) != all_turns(choice.worse)]
    order = seeds.stream(context.seed, "judged pairs", name).permutation(len(asked))
    turned = [bool(number % 2) for number in order]
    items = [_item(choice, turn) for choice, turn in zip(asked, turned, strict=True)]
    context.say(f"{context.out.name}: {name} compares {len(items)} pairs")
    shown = mapped(judge.compare, name, context.map)(items)
    judgments = [_judgment(*each) for each in zip(asked, shown, turned, strict=True)]
    verdicts = {
        (choice.row, choice.pair): each.verdict
        for choice, each in zip(asked, judgments, strict=True)
    }
    found = []
    for choice in every:
        p = verdicts.get((choice.row, choice.pair), Verdict(0.5)).p_first
        if p is not None:
            found.append(choice.scored(p, 1 - p))
    better_first = [not turn for turn in turned]
    return found, card(judgments, people=with_people(judgments, better_first, context.seed))


def _item(choice: Choice, turn: bool) -> Item:
    texts = all_turns(choice.better), all_turns(choice.worse)
    return (list(choice.group.prompt), *(texts[::-1] if turn else texts))


def _judgment(choice: Choice, verdict: Verdict, turn: bool) -> Judgment:
    """The verdict as one on (better, worse). A judge without orders answered one question: that
    with these places.
    """
    named: tuple[float, ...] = ()
    if verdict.p_first is not None:
        orders = verdict.p_orders
        named = (orders[0], 1 - orders[1]) if orders else (verdict.p_first,)
    return Judgment(choice.prompt, _turned(verdict) if turn else verdict, named)


def _turned(verdict: Verdict) -> Verdict:
    """The same verdict on the responses the other way around."""
    parts = {name: _turned(part) for name, part in verdict.parts.items()}
    if verdict.p_first is None:
        return replace(verdict, parts=parts)
    orders = verdict.p_orders
    swapped = (1 - orders[1], 1 - orders[0]) if orders else None
    return replace(verdict, p_first=1 - verdict.p_first, p_orders=swapped, parts=parts)
