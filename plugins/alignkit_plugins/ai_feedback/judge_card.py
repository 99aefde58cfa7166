"""How far a judge can be trusted: its order, its agreement with people, and what it cost.

Agreement in percent flatters a judge, because chance agrees with half of the pairs; its
Krippendorff's alpha is 0. A card is a plain dictionary, as docs/plugins/api/files.md describes it.
The unit of all intervals is a prompt.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alignkit.evaluation import statistics
from alignkit.evaluation.statistics import shown
from alignkit.judges import Item, costs
from alignkit.report import Table
from alignkit.reward import Verdict
from alignkit_plugins.compare.comparison import label

if TYPE_CHECKING:
    from alignkit.evaluation.statistics import Estimate
    from alignkit_plugins.krippendorff import Agreement

# Share of questions, and the end of its interval, from which a judge names a position.
ONE_POSITION, SURELY = 0.9, 0.8
USEFUL = 0.65  # agreement that a judge no better than chance must be clearly below
# Share of pairs decided by the order that a judge no better than chance must be clearly above.
HALF_BY_ORDER = 1 / 3
CHANCE = 0.5

Compare = Callable[[Sequence[Item]], list[Verdict]]


# Judges


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


def check_names(rewards: Sequence[Any], judges: Sequence[Any]) -> None:
    """Raise ValueError if a reward and a judge have the same name in the tables.

    Both are as `label` takes them.
    """
    both = {label(reward) for reward in rewards} & set(judge_names(judges))
    if both:
        raise ValueError(
            f"'{min(both)}' is the name of a reward and of a judge, and of rows in the tables; "
            "rename one"
        )


def mapped(compare: Compare, name: str, map_rows: Callable[..., list[Any]]) -> Compare:
    """`compare` with stored verdicts, so that a run that was killed asks no question twice.

    map_rows: context.map.
    """

    def judged(chunk: Sequence[Any]) -> list[dict[str, Any]]:
        items: list[Any] = [tuple(row) for row in chunk]
        return [asdict(verdict) for verdict in compare(items)]

    def stored(items: Sequence[Item]) -> list[Verdict]:
        rows = [list(item) for item in items]
        return [Verdict(**row) for row in map_rows(name, rows, judged)]

    return stored


# Verdicts


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
    orders = verdict.p_orders if verdict.p_first is not None else None
    return Judgment(unit, verdict, (orders[0], 1 - orders[1]) if orders else ())


def side(p: float | None) -> int | None:
    """1 if the first is better, -1 if the second is; None for a tie or without a verdict."""
    if p is None or Verdict(p).tied:
        return None
    return 1 if p > CHANCE else -1


def unjudged(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Verdicts that are missing, by their reason without its details."""
    reasons = [verdict.reason for verdict in verdicts if verdict.p_first is None]
    return Counter(reason.partition(":")[0] or "no reason given" for reason in reasons)


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
    """How far two raters agree, in percent and by Krippendorff's alpha.

    answers: prompt, and the answer of each.
    """
    from alignkit_plugins.krippendorff import agreement_of  # imports numpy

    pairs = [(one, other) for _, one, other in answers]
    units = [unit for unit, _, _ in answers]
    alpha = agreement_of(pairs, clusters=units, seed=seed)["alpha"]
    same = by_unit((unit, float(one == other)) for unit, one, other in answers)
    return {"same": same, "alpha": alpha}


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


# The card


def card(
    judgments: Sequence[Judgment],
    *,
    people: Mapping[str, Any] | None = None,
    agreement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole card, and of a panel those of its judges.

    people: of `with_people`. agreement: of `raters_agree` with each other rater.
    """
    verdicts = [each.verdict for each in judgments]
    swayed, first = [], []
    members: dict[str, list[Judgment]] = {}
    for each in judgments:
        orders = each.verdict.p_orders
        if each.named_first and orders:
            swayed.append((each.unit, float((orders[0] - CHANCE) * (orders[1] - CHANCE) < 0)))
        for p in each.named_first:
            first.append((each.unit, (side(p) or 0) / 2 + CHANCE))  # a tie is half of one
        for name, part in each.verdict.parts.items():
            members.setdefault(name, []).append(judgment(each.unit, part))
    facts: dict[str, Any] = {
        "comparisons": len(judgments),
        "unjudged": dict(unjudged(verdicts).most_common()),
        "inconsistent": by_unit(swayed),
        "named_first": by_unit(first),
        "people": people,
    }
    if members:
        facts["members"] = {name: card(own) for name, own in members.items()}
    why = no_judge(facts)
    return {"no_judge": why, **facts, "agreement": dict(agreement or {}), **costs(verdicts)}


def no_judge(card: Mapping[str, Any]) -> str:
    """Why the verdicts of a judge, or of a judge of a panel, are of no use, in words; empty if
    nothing says so.
    """
    parts = []
    if reasons := list(_faults(card)):
        parts.append(f"its verdicts are of no use, because {' and '.join(reasons)}")
    for name, member in card.get("members", {}).items():
        if member["no_judge"]:
            parts.append(f"{name} in it: {member['no_judge']}")
    return "; ".join(parts)


def _faults(card: Mapping[str, Any]) -> Iterator[str]:
    """What names a position, or is clearly near chance; a few pairs are not enough to say so."""
    first, swayed = card["named_first"], card["inconsistent"]
    if first["low"] is not None:
        second = (1 - first["mean"], 1 - first["high"])
        for which, mean, low in (("first", first["mean"], first["low"]), ("second", *second)):
            if mean >= ONE_POSITION and low > SURELY:
                yield f"it names the {which} answer that it reads in {mean:.0%} of questions"
    people = (card["people"] or {}).get("same")
    if people and people["low"] is not None and people["low"] <= CHANCE and people["high"] < USEFUL:
        yield f"it agrees with people in {shown(people, percent=True)}, no better than chance"
    if swayed["low"] is not None and swayed["low"] > HALF_BY_ORDER and swayed["high"] >= CHANCE:
        yield f"the order of the answers decides {shown(swayed, percent=True)} of pairs"


# In words


def sentence(name: str, card: Mapping[str, Any]) -> str:
    """What a reader must know of a judge: why it is of no use, or one number with its interval."""
    pairs, people, swayed = card["comparisons"], card["people"], card["inconsistent"]
    if card["no_judge"]:
        return f"warning: {name}: {card['no_judge']}"
    silent = sum(card["unjudged"].values())
    if silent == pairs:
        return f"{name} has no verdict on any of {pairs:,} pairs."
    if people:
        agreed = shown(people["same"], percent=True)
        told = f"{name} agrees with people in {agreed} of its answers on {pairs:,} pairs"
        swayed = {**swayed, "low": None, "high": None}
    else:
        told = f"{name} compared {pairs:,} pairs, and how far people agree with it is not known"
    if swayed["mean"] is not None:
        told += f"; the order of the answers decides {shown(swayed, percent=True)}"
    if silent:
        told += f"; no verdict on {silent:,} ({', '.join(card['unjudged'])})"
    return f"{told}."


def trust_tables(cards: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The details of judges' cards, a column each, and their agreement with other raters."""
    columns: dict[str, Mapping[str, str]] = {}
    pairs = []
    for name, card in cards.items():
        columns[name] = _cells(card)
        for member, own in card.get("members", {}).items():
            columns[f"{name}: {member}"] = _cells(own)
        for other, both in card["agreement"].items():
            pairs.append([name, other, shown(both["same"], percent=True), shown(both["alpha"])])
    measures = dict.fromkeys(itertools.chain.from_iterable(columns.values()))
    rows = []
    for measure in measures:
        rows.append([measure, *(cells.get(measure, "-") for cells in columns.values())])
    heads = ["judge", "and", "same winner", "Krippendorff's alpha"]
    tables = [Table("how far to trust the judges", ["", *columns], rows)] if rows else []
    if pairs:
        tables.append(Table("agreement with other raters", heads, pairs, keys=2))
    return tables


def _cells(card: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a judge, by measure."""
    people = card["people"] or {}
    cells = {
        "pairs": f"{card['comparisons']:,}",
        "no verdict": f"{sum(card['unjudged'].values()):,}",
        "agrees with people": shown(people.get("same"), percent=True),
        "Krippendorff's alpha": shown(people.get("alpha")),
        "names the first answer (50% without bias)": shown(card["named_first"], percent=True),
        "the order decides": shown(card["inconsistent"], percent=True),
    }
    for measure, key in (("questions", "calls"), ("tokens", "tokens"), ("cost", "cost")):
        value = card.get(key)
        if value is not None:
            cells[measure] = f"{value:,.4g}" if key == "cost" else f"{value:,}"
    return {measure: cell for measure, cell in cells.items() if cell != "-"}
