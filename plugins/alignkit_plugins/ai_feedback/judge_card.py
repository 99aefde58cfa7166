"""How far a judge can be trusted: one sentence, and tables of its order, agreement with people, and
calls.

Agreement in percent flatters a judge, because chance agrees with half of the pairs; its
Krippendorff's alpha is 0. A card is a plain dictionary, as docs/plugins/api/files.md describes it.
The unit of all intervals is a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alignkit.evaluation import statistics
from alignkit.judges import Item, costs
from alignkit.report import Table
from alignkit.reward import Verdict
from alignkit_plugins.ai_feedback.judge_quality import (
    CHANCE,
    Judgment,
    by_unit,
    judgment,
    named_first,
    no_judge,
    unjudged,
)
from alignkit_plugins.compare.reward_columns import label

Compare = Callable[[Sequence[Item]], list[Verdict]]


def judge_names(judges: Sequence[Any]) -> list[str]:
    """Names of judges in the tables: a second `openai_judge` is `openai_judge-2`. judges: as
    `label` takes them.
    """
    names = [label(judge) for judge in judges]
    counts = [names[:number].count(name) + 1 for number, name in enumerate(names)]
    return [
        name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)
    ]


def check_names(rewards: Sequence[Any], judges: Sequence[Any]) -> None:
    """Raise ValueError if a reward and a judge have the same name in the tables. Both are as
    `label` takes them.
    """
    if both := sorted({label(reward) for reward in rewards} & set(judge_names(judges))):
        raise ValueError(
            f"'{both[0]}' is the name of a reward and of a judge, and of rows in the tables; "
            "rename one"
        )


def mapped(compare: Compare, name: str, map_rows: Callable[..., list[Any]]) -> Compare:
    """`compare` with stored verdicts, so that a run that was killed asks no question twice.
    map_rows: context.map.
    """

    def judged(chunk: Sequence[Any]) -> list[dict[str, Any]]:
        return [asdict(verdict) for verdict in compare([tuple(row) for row in chunk])]

    return lambda items: [
        Verdict(**row) for row in map_rows(name, [list(item) for item in items], judged)
    ]


def card(
    judgments: Sequence[Judgment],
    *,
    people: Mapping[str, Any] | None = None,
    agreement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole card, and of a panel those of its judges. people: of `with_people`. agreement: of
    `raters_agree` with each other rater.
    """
    verdicts = [each.verdict for each in judgments]
    orders = [(each.unit, each.verdict.p_orders) for each in judgments if each.named_first]
    swayed = [(unit, float((p[0] - CHANCE) * (p[1] - CHANCE) < 0)) for unit, p in orders if p]
    facts: dict[str, Any] = {
        "comparisons": len(judgments),
        "unjudged": dict(unjudged(verdicts).most_common()),
        "inconsistent": by_unit(swayed),
        "named_first": named_first(judgments),
        "people": people,
    }
    if panel := dict.fromkeys(name for each in judgments for name in each.verdict.parts):
        facts["members"] = {}
        for name in panel:
            own = [
                judgment(each.unit, each.verdict.parts[name])
                for each in judgments
                if name in each.verdict.parts
            ]
            facts["members"][name] = card(own)
    return {
        "no_judge": no_judge(facts),
        **facts,
        "agreement": dict(agreement or {}),
        **costs(verdicts),
    }


# Tables


def sentence(name: str, card: Mapping[str, Any]) -> str:
    """What a reader must know of a judge: why it is of no use, or one number with its interval."""
    pairs, people, swayed = card["comparisons"], card["people"], card["inconsistent"]
    if card["no_judge"]:
        return f"warning: {name}: {card['no_judge']}"
    silent = sum(card["unjudged"].values())
    if silent == pairs:
        return f"{name} has no verdict on any of {pairs:,} pairs."
    if people:
        agreed = statistics.shown(people["same"], percent=True)
        told = f"{name} agrees with people in {agreed} of its answers on {pairs:,} pairs"
        order = {"mean": swayed["mean"], "low": None, "high": None}
    else:
        told = f"{name} compared {pairs:,} pairs, and how far people agree with it is not known"
        order = swayed
    if order["mean"] is not None:
        told += f"; the order of the answers decides {statistics.shown(order, percent=True)}"
    if silent:
        told += f"; no verdict on {silent:,} ({', '.join(card['unjudged'])})"
    return f"{told}."


def trust_tables(
    cards: Mapping[str, Mapping[str, Any]], title: str = "how far to trust the judges"
) -> list[Table]:
    """The details of judges' cards, a column each, and their agreement with other raters."""
    if not cards:
        return []
    rows = [
        [what, *cells]
        for what, cells in _rows(list(cards.values()))
        if any(cell != "-" for cell in cells)
    ]
    tables = [Table(title, ["", *cards], rows)]
    shown = statistics.shown
    pairs = [
        [name, other, shown(found["same"], percent=True), shown(found["alpha"])]
        for name, card in cards.items()
        for other, found in card["agreement"].items()
    ]
    for name, card in cards.items():
        tables += trust_tables(card.get("members") or {}, f"the judges of {name}")
    heads = ["judge", "and", "same winner", "Krippendorff's alpha"]
    return (
        [*tables, Table("agreement with other raters", heads, pairs, keys=2)] if pairs else tables
    )


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
    yield (
        "names the first answer (50% without bias)",
        [statistics.shown(card["named_first"], percent=True) for card in cards],
    )
    yield (
        "the order decides",
        [statistics.shown(card["inconsistent"], percent=True) for card in cards],
    )
    yield "questions", count(card["calls"] for card in cards)
    yield "tokens", count(card["tokens"] for card in cards)
    yield "cost", ["-" if card.get("cost") is None else f"{card['cost']:,.4g}" for card in cards]
