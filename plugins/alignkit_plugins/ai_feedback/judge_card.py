"""How far a judge can be trusted: how often the order decides, and its agreement with people.

A card is a plain dictionary, as docs/plugins/api/files.md describes it. The unit of all intervals
is a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alignkit.contract.reward import Context, Item, Verdict, costs
from alignkit.evaluation import statistics
from alignkit.evaluation.statistics import interval_text
from alignkit.host.judges import CheckedJudge
from alignkit_plugins.compare.comparison import label

if TYPE_CHECKING:
    from alignkit.evaluation.statistics import Estimate

USEFUL = 0.65  # agreement that a judge no better than chance must be clearly below
# Share of pairs decided by the order that a judge no better than chance must be clearly above.
HALF_BY_ORDER = 1 / 3
CHANCE = 0.5
ALL_BUT_ONE = "all judges but one"  # the name of a panel's other judges

Compare = Callable[[Sequence[Item]], list[Verdict]]
Judgment = tuple[int, Verdict]  # a prompt, and a verdict on two different answers to it


def judge_names(judges: Sequence[Any]) -> list[str]:
    """Names of judges in the tables: a second `openai_judge` is `openai_judge-2`.

    judges: as `label` takes them.
    """
    names: list[str] = []
    counts = Counter[str]()
    for judge in judges:
        name = label(judge)
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return names


def checked_judges(judges: Sequence[Any], context: Context) -> dict[str, CheckedJudge]:
    """The judges by name, ready to be asked; a missing key or file shows here."""
    made = [CheckedJudge(judge, context) for judge in judges]
    return dict(zip(judge_names(judges), made, strict=True))


def mapped(compare: Compare, name: str, map_rows: Callable[..., list[Any]]) -> Compare:
    """`compare` with stored verdicts, so that a run that was killed asks no question twice.

    map_rows: context.map.
    """

    def judged(rows: Sequence[Any]) -> list[dict[str, Any]]:
        items: list[Any] = list(map(tuple, rows))
        return list(map(asdict, compare(items)))

    def stored(items: Sequence[Item]) -> list[Verdict]:
        return [Verdict(**row) for row in map_rows(name, list(map(list, items)), judged)]

    return stored


def side(p: float | None) -> int | None:
    """1 if the first is better, -1 if the second is; None for a tie or without a verdict."""
    if p is None or Verdict(p).tied:
        return None
    return 1 if p > CHANCE else -1


def by_unit(values: Iterable[tuple[int, float]]) -> Estimate:
    """The mean of values from 0 to 1, of which those of a unit are averaged first, with the
    interval of a rate.
    """
    units: dict[int, list[float]] = {}
    for unit, value in values:
        units.setdefault(unit, []).append(value)
    most = max(map(len, units.values()), default=1)
    return statistics.rate(list(map(statistics.mean, units.values())), most)


def with_people(judgments: Sequence[Judgment], preferred: Sequence[bool]) -> Estimate | None:
    """How far a judge makes people's choice, over its questions: each pair in each order; None
    without an answer.

    preferred: whether people prefer the first answer of a verdict. A tie is no answer.
    """
    same = []
    for (unit, verdict), first in zip(judgments, preferred, strict=True):
        for p in verdict.p_orders or [verdict.p_first]:
            if named := side(p):
                same.append((unit, float((named > 0) == first)))
    return by_unit(same) if same else None


def kind_of(verdict: Verdict) -> str:
    """Why there is no verdict, without details."""
    return verdict.reason.partition(":")[0] or "no reason given"


def judge_card(judgments: Sequence[Judgment], people: Estimate | None = None) -> dict[str, Any]:
    """What a judge's verdicts say of it. people: of `with_people`."""
    unjudged, swayed = Counter[str](), []
    missing = Counter[str]()
    for unit, verdict in judgments:
        missing.update(verdict.missing)
        if verdict.p_first is None:
            unjudged[kind_of(verdict)] += 1
        elif verdict.p_orders:
            one, other = verdict.p_orders
            swayed.append((unit, float((one - CHANCE) * (other - CHANCE) < 0)))
    facts: dict[str, Any] = {
        "comparisons": len(judgments),
        "unjudged": dict(unjudged.most_common()),
        "panel": dict(missing),
        "inconsistent": by_unit(swayed),
        "people": people,
    }
    return {"no_judge": no_judge(facts), **facts, **costs(verdict for _, verdict in judgments)}


def no_judge(card: Mapping[str, Any]) -> str:
    """Why a judge's verdicts are useless, in words: they are clearly near chance. Empty if
    nothing says so; a few pairs are not enough.
    """
    reasons, people, swayed = [], card["people"], card["inconsistent"]
    if people and people["low"] is not None and people["low"] <= CHANCE and people["high"] < USEFUL:
        agreed = interval_text(people, percent=True)
        reasons.append(f"it agrees with people in {agreed}, no better than chance")
    if swayed["low"] is not None and swayed["low"] > HALF_BY_ORDER and swayed["high"] >= CHANCE:
        share = interval_text(swayed, percent=True)
        reasons.append(f"the order of the answers decides {share} of pairs")
    return f"its verdicts are useless, because {' and '.join(reasons)}" if reasons else ""


def sentence(name: str, card: Mapping[str, Any]) -> str:
    """What a reader must know of a judge: why it is useless, or how good it is; and in another
    line, which judges of a panel have said nothing.
    """
    pairs, people, swayed = card["comparisons"], card["people"], card["inconsistent"]
    silent = sum(card["unjudged"].values())
    if card["no_judge"]:
        text = f"warning: {name}: {card['no_judge']}"
    elif silent == pairs:
        text = f"{name} has no verdict on any of {pairs:,} pairs ({', '.join(card['unjudged'])})."
    else:
        text = f"{name} compared {pairs:,} pairs, and how far people agree with it is not known"
        if people:
            agreed = interval_text(people, percent=True)
            text = f"{name} agrees with people in {agreed} of its answers on {pairs:,} pairs"
        if swayed["mean"] is not None:
            share = interval_text(swayed, percent=True)
            text += f"; the order of the answers decides {share}"
        if silent:
            text += f"; no verdict on {silent:,} ({', '.join(card['unjudged'])})"
        text += "."
    if panel := card.get("panel"):  # earlier cards have none
        often = 2 * panel.get(ALL_BUT_ONE, 0) >= card["comparisons"]
        lacks = ", ".join(f"{judge} on {count:,}" for judge, count in panel.items())
        text += f"\n{'warning: ' * often}{name}: no verdict of {lacks}"
    return text
