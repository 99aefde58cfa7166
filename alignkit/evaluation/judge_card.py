"""How far a judge can be trusted: its order, its answers when asked again, circles, length, people, and its calls.

Sage (2025, arXiv:2512.16041) finds that even the best judges contradict themselves in a quarter of hard cases, and
agreement in percent flatters a judge, because a coin agrees with half of the pairs. A card is a plain dictionary, as
docs/plugins/api/files.md describes it. The unit of all intervals is a prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from alignkit import seeds
from alignkit.evaluation import statistics
from alignkit.evaluation.judge_quality import Judgment, by_unit, no_judge, side, verdict_facts
from alignkit.evaluation.reward_columns import label
from alignkit.judges import CheckedJudge, Item, costs, verdict_from
from alignkit.report import Table
from alignkit.reward import Verdict

if TYPE_CHECKING:
    from alignkit.evaluation.statistics import Estimate
    from alignkit.step import StepContext


PEOPLE = "people"  # their name in the tables of raters

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

    return lambda items: [verdict_from(row) for row in map_rows(name, [list(item) for item in items], judged)]


# Measures


def measured(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """The parts of a card that follow from the verdicts alone, and of a panel those of each of its judges."""
    panel = members(judgments)
    return {**verdict_facts(judgments), **({"members": panel} if panel else {})}


def card(
    judgments: Sequence[Judgment],
    *,
    again: Again | None = None,
    more: Iterable[Verdict] = (),
    people: Mapping[str, Any] | None = None,
    annotators: Mapping[str, Any] | None = None,
    agreement: Mapping[str, Any] | None = None,
    circles: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole card. more: verdicts that only its costs include. people, agreement: of `two_raters`.

    annotators: how people agree with each other, if the card is theirs: estimates by the names of coefficients.
    """
    repetitions = [verdict for verdicts in again.verdicts for verdict in verdicts] if again else []
    parts = {
        **measured(judgments),
        "repeated": repeated(again, judgments) if again else None,
        "circular": circles,
        "people": people,
        "annotators": annotators,
        "agreement": dict(agreement or {}),
        **costs([*(each.verdict for each in judgments), *repetitions, *more]),
    }
    return {"no_judge": no_judge(parts), **parts}


# More questions


@dataclass(frozen=True)
class Again:
    """Some pairs asked again. verdicts: of each repetition, on the pairs at `places`."""

    places: Sequence[int]
    verdicts: Sequence[Sequence[Verdict]]

    def same(self, judgments: Sequence[Judgment]) -> Estimate:
        """The share of repetitions with the same winner as at first; one without a verdict is not the same."""
        return by_unit(
            (judgments[place].unit, float(_winner(again) == _winner(judgments[place].verdict)))
            for verdicts in self.verdicts
            for place, again in zip(self.places, verdicts, strict=True)
        )


def _winner(verdict: Verdict) -> int | None:
    """1, -1, 0 for a tie; None without a verdict."""
    return None if verdict.p_first is None else side(verdict.p_first) or 0


def ask_again(
    component: Any, name: str, context: StepContext, asked: Sequence[tuple[Item, Verdict]], times: int, most: int
) -> Again:
    """Ask a judge the same questions again, each time with a cache of its own, so that no stored reply answers.

    component: the value of a JudgeRef option. asked: the questions and the verdicts at first. times: repetitions.
    most: pairs to ask about, drawn from those with a verdict by the context's seed.
    """
    known = [place for place, (_, verdict) in enumerate(asked) if verdict.p_first is not None]
    drawn = seeds.stream(context.seed, "asked again", name).permutation(len(known))[:most] if times else ()
    places = sorted(known[int(index)] for index in drawn)
    verdicts = []
    for time in range(1, times + 1) if places else ():
        own = replace(context, cache=context.cache / f"again-{time}")
        compare = CheckedJudge(component, own).compare
        context.say(f"{context.out.name}: {name} compares {len(places)} pairs again ({time} of {times})")
        verdicts.append(mapped(compare, f"{name}-again-{time}", context.map)([asked[place][0] for place in places]))
    return Again(places, verdicts)


def repeated(again: Again, judgments: Sequence[Judgment]) -> dict[str, Any] | None:
    """The card's part on repetitions; None if nothing was asked again."""
    if not again.verdicts:
        return None
    return {"pairs": len(again.places), "times": len(again.verdicts), "same": again.same(judgments)}


def circular(sides: Sequence[Mapping[tuple[str, str], int | None]]) -> dict[str, Any] | None:
    """The share of triads of policies that a judge ranks in a circle: A over B, B over C, C over A. A coin makes 25%.

    sides: for each prompt, `side` of the first of two policies. Triads with a tie or without a verdict are undecided.
    None without triads. Kendall and Babington Smith 1940, "On the method of paired comparisons".
    """
    found: list[tuple[int, float]] = []
    triads = 0
    for unit, known in enumerate(sides):
        both = {**known, **{(b, a): None if value is None else -value for (a, b), value in known.items()}}
        policies = sorted({policy for pair in known for policy in pair})
        for a, b, c in itertools.combinations(policies, 3):
            if not {(a, b), (b, c), (c, a)} <= both.keys():
                continue
            triads += 1
            ab, bc, ca = both[a, b], both[b, c], both[c, a]
            if ab is not None and bc is not None and ca is not None:
                found.append((unit, float(ab == bc == ca)))
    return {"triads": triads, "undecided": triads - len(found), "share": by_unit(found)} if triads else None


def against_people(card: Mapping[str, Any]) -> str:
    """`agrees with people in 73% [64, 81] of 200 questions, kappa 0.46 [0.28, 0.62]`, and whether it is no judge."""
    people, shown = card["people"], statistics.shown
    if not people:
        unjudged = sum(card["unjudged"].values()) == card["comparisons"]
        return "gave no verdict on any pair" if unjudged else "prefers neither response of any pair"
    text = f"agrees with people in {shown(people['same'], percent=True)} of {people['questions']:,} questions"
    text += f", kappa {shown(people['kappa'])}, AC1 {shown(people['ac1'])}"
    return f"{text}; {card['no_judge']}" if card["no_judge"] else text


# Tables


def raters(names: Iterable[str]) -> str:
    """A name for all raters: `judges`, `people`, or `people and judges`."""
    known = list(names)
    if PEOPLE not in known:
        return "judges"
    return PEOPLE if set(known) == {PEOPLE} else "people and judges"


def rater(names: Iterable[str]) -> str:
    """The heading of their column."""
    return "rater" if PEOPLE in names else "judge"


def preferred_title(names: Sequence[str], baseline: object) -> str:
    """The title of the table of what they prefer."""
    return f"{raters(names)}, against {baseline}{'' if PEOPLE in names else ', in both orders'}"


def about_table(names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Table:
    """What is known of raters themselves, after a policy and a rater: the last two columns are of both orders.

    People see a pair in one order only, so a table of people alone is without these.
    """
    end = -2 if set(names) == {PEOPLE} else None
    return Table(f"the {raters(names)} themselves", columns[:end], [row[:end] for row in rows], keys=2, note=note)


def trust_tables(cards: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The cards of judges, a column each, and their agreement with other raters."""
    if not cards:
        return []
    rows = [[what, *cells] for what, cells in _rows(list(cards.values())) if any(cell != "-" for cell in cells)]
    note = "; ".join(f"{name}: {card['no_judge']}" for name, card in cards.items() if card["no_judge"])
    tables = [Table(f"how far to trust the {rater(cards)}s", ["", *cards], rows, note=note)]
    shown = statistics.shown
    pairs = [
        [name, other, shown(found["same"], percent=True), shown(found["kappa"]), shown(found["ac1"])]
        for name, card in cards.items()
        for other, found in card["agreement"].items()
    ]
    tables += [panel_table(name, card["members"]) for name, card in cards.items() if card.get("members")]
    heads = [rater(cards), "and", "same winner", "Cohen's kappa", "Gwet's AC1"]
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
    yield "Cohen's kappa", number("people", "kappa")
    yield "Gwet's AC1", number("people", "ac1")
    yield "annotators agree", percent("annotators", "agreement")
    yield "annotators: Krippendorff's alpha", number("annotators", "alpha_nominal")
    yield "annotators: Gwet's AC1", number("annotators", "gwet_ac1")
    yield "names the first (unbiased: 50%)", [statistics.shown(card["named_first"], percent=True) for card in cards]
    yield "order decides", [statistics.shown(card["inconsistent"], percent=True) for card in cards]
    yield "same when asked again", percent("repeated", "same")
    yield "circular triads (a coin: 25%)", percent("circular", "share")
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
