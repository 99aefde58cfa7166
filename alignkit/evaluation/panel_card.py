"""How far each judge of a panel can be trusted: a card for each, and how often it decides as the panel does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit.evaluation import statistics
from alignkit.evaluation.judge_quality import Judgment, by_unit, no_judge, side, verdict_facts
from alignkit.report import Table


def members(judgments: Sequence[Judgment]) -> dict[str, dict[str, Any]]:
    """For each judge: the parts of a card that follow from verdicts, and these; empty if no panel was asked.

    with_panel: the share of pairs in which it prefers what the panel prefers, ties of either left out. spread: the
    standard deviation of its P(first is better) over pairs; 0 says the same of all. no_judge: why it is none.
    """
    names = dict.fromkeys(name for each in judgments for name in each.verdict.parts)
    return {name: _member([each for each in judgments if name in each.verdict.parts], name) for name in names}


def _member(judgments: Sequence[Judgment], name: str) -> dict[str, Any]:
    own = [_own(each, name) for each in judgments]
    sides = [(side(each.verdict.p_first), side(its.verdict.p_first)) for each, its in zip(judgments, own, strict=True)]
    both = zip(judgments, sides, strict=True)
    same = [(each.unit, float(panel == its)) for each, (panel, its) in both if panel is not None and its is not None]
    known = [each.verdict.p_first for each in own if each.verdict.p_first is not None]
    middle = statistics.mean(known) if known else 0.0
    spread = statistics.mean([(p - middle) ** 2 for p in known]) ** 0.5 if known else None
    card = {**verdict_facts(own), "with_panel": by_unit(same), "spread": spread}
    return {"no_judge": no_judge(card), **card}


def _own(judgment: Judgment, name: str) -> Judgment:
    """What one judge of the panel said."""
    verdict = judgment.verdict.parts[name]
    orders = verdict.p_orders if verdict.p_first is not None else None
    return replace(judgment, verdict=verdict, named_first=(orders[0], 1 - orders[1]) if orders else ())


def table(panel: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The judges of a panel, a row each."""
    columns = ["judge", "pairs", "no verdict", "names the first", "order decides", "same as the panel", "spread"]
    rows = [
        [
            name,
            f"{card['comparisons']:,}",
            f"{sum(card['unjudged'].values()):,}",
            *(statistics.shown(card[key], percent=True) for key in ("named_first", "inconsistent", "with_panel")),
            "-" if card["spread"] is None else f"{card['spread']:.2f}",
        ]
        for name, card in found.items()
    ]
    return Table(f"the judges of {panel}", columns, rows)
