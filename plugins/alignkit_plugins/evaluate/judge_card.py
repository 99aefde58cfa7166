"""How far a judge can be trusted: its order, length, its agreement with people, and its calls.

Agreement in percent flatters a judge, because a coin agrees with half of the pairs; Krippendorff's alpha of a coin is
0. A card is a plain dictionary, as docs/plugins/api/files.md describes it. The unit of all intervals is a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from alignkit.evaluation import statistics
from alignkit.judges import Item, costs
from alignkit.report import Table
from alignkit.reward import Verdict
from alignkit_plugins.evaluate.judge_quality import Judgment, by_unit, no_judge, side, verdict_facts
from alignkit_plugins.evaluate.reward_columns import label

Compare = Callable[[Sequence[Item]], list[Verdict]]


def judge_names(judges: Sequence[Any]) -> list[str]:
    """Names of judges in the tables: a second `openai_judge` is `openai_judge-2`. judges: as `label` takes them."""
    names = [label(judge) for judge in judges]
    counts = [names[:number].count(name) + 1 for number, name in enumerate(names)]
    return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]


def check_names(rewards: Sequence[Any], judges: Sequence[Any]) -> None:
    """Raise ValueError if a reward and a judge have the same name in the tables. Both are as `label` takes them."""
    if both := sorted({label(reward) for reward in rewards} & set(judge_names(judges))):
        raise ValueError(f"'{both[0]}' is the name of a reward and of a judge, and of rows in the tables; rename one")


def mapped(compare: Compare, name: str, map_rows: Callable[..., list[Any]]) -> Compare:
    """`compare` with stored verdicts, so that a run that was killed asks no question twice. map_rows: context.map."""

    def judged(chunk: Sequence[Any]) -> list[dict[str, Any]]:
        return [asdict(verdict) for verdict in compare([tuple(row) for row in chunk])]

    return lambda items: [Verdict(**row) for row in map_rows(name, [list(item) for item in items], judged)]


# Measures


def measured(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """The parts of a card that follow from the verdicts alone, and of a panel those of each of its judges."""
    panel = members(judgments)
    return {**verdict_facts(judgments), **({"members": panel} if panel else {})}


def card(
    judgments: Sequence[Judgment],
    *,
    people: Mapping[str, Any] | None = None,
    agreement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole card. people, agreement: of `agreement_of`."""
    parts = {
        **measured(judgments),
        "people": people,
        "agreement": dict(agreement or {}),
        **costs([each.verdict for each in judgments]),
    }
    return {"no_judge": no_judge(parts), **parts}


# Tables


def preferred_title(baseline: object) -> str:
    """The title of the table of what judges prefer."""
    return f"judges, against {baseline}, in both orders"


def about_table(columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Table:
    """What is known of judges themselves, after a policy and a judge."""
    return Table("the judges themselves", columns, rows, keys=2, note=note)


def trust_tables(cards: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The cards of judges, a column each, and their agreement with other raters."""
    if not cards:
        return []
    rows = [[what, *cells] for what, cells in _rows(list(cards.values())) if any(cell != "-" for cell in cells)]
    note = "; ".join(f"{name}: {card['no_judge']}" for name, card in cards.items() if card["no_judge"])
    tables = [Table("how far to trust the judges", ["", *cards], rows, note=note)]
    shown = statistics.shown
    pairs = [
        [name, other, shown(found["same"], percent=True), shown(found["alpha"])]
        for name, card in cards.items()
        for other, found in card["agreement"].items()
    ]
    tables += [panel_table(name, card["members"]) for name, card in cards.items() if card.get("members")]
    heads = ["judge", "and", "same winner", "Krippendorff's alpha"]
    return [*tables, Table("agreement with other raters", heads, pairs, keys=2)] if pairs else tables


def _rows(cards: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, list[str]]]:
    def percent(part: str, key: str) -> list[str]:
        return [statistics.shown((card.get(part) or {}).get(key), percent=True) for card in cards]

    def number(part: str, key: str) -> list[str]:
        return [statistics.shown((card.get(part) or {}).get(key)) for card in cards]

    def count(values: Iterable[int | None]) -> list[str]:
        return ["-" if value is None else f"{value:,}" for value in values]

    yield "pairs", count(card["comparisons"] for card in cards)
    yield "no verdict", count(sum(card["unjudged"].values()) for card in cards)
    yield "agrees with people", percent("people", "same")
    yield "Krippendorff's alpha", number("people", "alpha")
    yield "names the first (unbiased: 50%)", [statistics.shown(card["named_first"], percent=True) for card in cards]
    yield "order decides", [statistics.shown(card["inconsistent"], percent=True) for card in cards]
    yield "twice as long: P(better)", [statistics.shown(card["length_slope"], sign=True) for card in cards]
    yield "questions", count(card["calls"] for card in cards)
    yield "tokens", count(card["tokens"] for card in cards)
    yield "cost", ["-" if card.get("cost") is None else f"{card['cost']:,.4g}" for card in cards]


# The judges of a panel


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


def panel_table(panel: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
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
