"""How far a judge can be trusted: its order, its answers when asked again, circles, length, people, and its calls.

Sage (2025, arXiv:2512.16041) finds that even the best judges contradict themselves in a quarter of hard cases, and
agreement in percent flatters a judge, because a coin agrees with half of the pairs. A card is a plain dictionary, as
docs/evaluation.md describes it. The unit of all intervals is a prompt.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from alignkit import seeds, statistics
from alignkit.judges import CheckedJudge, Item, verdict_from
from alignkit.report import Table
from alignkit.reward import Rating, Verdict
from alignkit.reward_columns import label

if TYPE_CHECKING:
    from alignkit.statistics import Estimate
    from alignkit.step import StepContext

ONE_POSITION, SURELY = 0.9, 0.8  # share of questions, and the end of its interval, from which a judge names a position
USEFUL = 0.65  # agreement that a judge like a coin must be clearly below
HALF_BY_ORDER = 1 / 3  # share of pairs decided by the order that a judge like a coin must be clearly above
COIN = 0.5
PEOPLE = "people"  # their name in the tables of raters

Compare = Callable[[Sequence[Item]], list[Verdict]]


@dataclass(frozen=True)
class Judgment:
    """A verdict on two different answers.

    unit: its prompt. longer: how many times the first answer is twice as long, log2 of the ratio of their characters.
    named_first: for each question, P(the answer that is shown first). policy: comparisons of one policy.
    """

    unit: int
    verdict: Verdict
    longer: float
    named_first: tuple[float, ...]
    policy: str = ""


def judge_names(judges: Sequence[Any]) -> list[str]:
    """Names of judges in the tables: a second `openai_judge` is `openai_judge-2`. judges: as `label` takes them."""
    names = [label(judge) for judge in judges]
    counts = [names[:number].count(name) + 1 for number, name in enumerate(names)]
    return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]


def check_names(rewards: Sequence[Any], judges: Sequence[Any]) -> None:
    """Raise ValueError if a reward and a judge have the same name in the tables. Both are as `label` takes them."""
    if both := sorted({label(reward) for reward in rewards} & set(judge_names(judges))):
        raise ValueError(f"'{both[0]}' is the name of a reward and of a judge, and of rows in the tables; rename one")


def judgment(unit: int, verdict: Verdict, first: str, second: str, policy: str = "") -> Judgment:
    """The verdict on these two answers, which the judge has seen in both orders."""
    orders = verdict.p_orders if verdict.p_first is not None else None
    shown = (orders[0], 1 - orders[1]) if orders else ()
    return Judgment(unit, verdict, times_longer(first, second), shown, policy)


def times_longer(first: str, second: str) -> float:
    """How many times a text is twice as long as another one."""
    return math.log2(max(1, len(first)) / max(1, len(second)))


def side(p: float | None) -> int | None:
    """1 if the first is better, -1 if the second is; None for a tie or without a verdict."""
    return None if p is None or Verdict(p).tied else 1 if p > COIN else -1


def mapped(compare: Compare, name: str, map_rows: Callable[..., list[Any]]) -> Compare:
    """`compare` with stored verdicts, so that a run that was killed asks no question twice. map_rows: context.map."""

    def judged(chunk: Sequence[Any]) -> list[dict[str, Any]]:
        return [asdict(verdict) for verdict in compare([tuple(row) for row in chunk])]

    return lambda items: [verdict_from(row) for row in map_rows(name, [list(item) for item in items], judged)]


# Measures


def measured(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """The parts of a card that follow from the verdicts alone."""
    verdicts = [each.verdict for each in judgments]
    reasons = Counter(v.reason.partition(":")[0] or "no reason given" for v in verdicts if v.p_first is None)
    known = [(each.unit, each.verdict.p_orders) for each in judgments if each.verdict.p_first is not None]
    swayed = [(unit, float((p[0] - COIN) * (p[1] - COIN) < 0)) for unit, p in known if p]
    return {
        "comparisons": len(judgments),
        "unjudged": dict(reasons.most_common()),
        "inconsistent": by_unit(swayed),
        "named_first": named_first(judgments),
        "length_slope": length_slope(judgments),
    }


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


def named_first(judgments: Sequence[Judgment]) -> Estimate:
    """The share of questions that are answered with the answer that is shown first; a tie is half of one."""
    questions = [(each.unit, {1: 1.0, -1: 0.0}.get(side(p) or 0, 0.5)) for each in judgments for p in each.named_first]
    return by_unit(questions)


def by_unit(values: Iterable[tuple[int, float]]) -> Estimate:
    """The mean of values from 0 to 1, of which those of a unit are averaged first, with the interval of a rate."""
    units: dict[int, list[float]] = {}
    for unit, value in values:
        units.setdefault(unit, []).append(value)
    most = max(map(len, units.values()), default=1)
    return statistics.rate([statistics.mean(each) for each in units.values()], most)


def length_slope(judgments: Sequence[Judgment]) -> Estimate:
    """By how much P(better) grows when an answer is twice as long: least squares, with an intercept for each policy.

    It says what goes with length, not what length causes: longer answers may be better. Comparisons of a policy at one
    prompt are averaged first. All policies of a prompt meet the same baseline's answer, so the variance is that of
    whole prompts, jackknifed (CR3; Bell and McCaffrey 2002, "Bias reduction in standard errors for linear regression
    with multi-stage samples"). None without different lengths.
    """
    import numpy as np
    from scipy import stats

    cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for each in judgments:
        if each.verdict.p_first is not None:
            cells.setdefault((each.policy, each.unit), []).append((each.longer, each.verdict.p_first))
    policies, units = np.array([policy for policy, _ in cells]), np.array([unit for _, unit in cells])
    rows = np.array([np.mean(row, axis=0) for row in cells.values()]).reshape(-1, 2)
    for policy in np.unique(policies):
        rows[policies == policy] -= rows[policies == policy].mean(axis=0)
    x, y = rows.T
    prompts = [units == unit for unit in np.unique(units)]
    n, spread = len(prompts), float(x @ x)
    if n < 3 or spread < 1e-12:
        return {"mean": None, "low": None, "high": None, "n": n}
    slope = float(x @ y) / spread
    parts = np.array([(x[own] @ (y - slope * x)[own], x[own] @ x[own]) for own in prompts])  # [prompts, 2]
    rest = np.maximum(spread * (1 - 1 / n) - parts[:, 1], 0.05 * spread)  # without each prompt
    changes = parts[:, 0] / rest  # of the slope
    half = float(stats.t.ppf((1 + statistics.CONFIDENCE) / 2, n - 2)) * math.sqrt(float(changes @ changes))
    low, high = (slope - half, slope + half) if half > 1e-12 else (None, None)
    return {"mean": slope, "low": low, "high": high, "n": n}


def costs(verdicts: Iterable[Verdict | Rating]) -> dict[str, int | float | None]:
    """Questions and tokens of all verdicts, and what they cost; None if no verdict says them."""
    every = list(verdicts)
    calls = [v.calls for v in every if v.calls is not None]
    tokens = [v.tokens for v in every if v.tokens is not None]
    prices = [v.cost for v in every if v.cost is not None]
    return {
        "calls": sum(calls) if calls else None,
        "tokens": sum(tokens) if tokens else None,
        "cost": math.fsum(prices) if prices else None,
    }


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


# The verdict on the judge


def no_judge(card: Mapping[str, Any]) -> str:
    """Why the judge is none, in words; empty if nothing says so."""
    reasons = [*_position(card), *_coin(card)]
    return f"this is no judge: {'; '.join(reasons)}" if reasons else ""


def against_people(card: Mapping[str, Any]) -> str:
    """`agrees with people in 73% [64, 81] of 200 questions, kappa 0.46 [0.28, 0.62]`, and whether it is no judge."""
    people, shown = card["people"], statistics.shown
    if not people:
        unjudged = sum(card["unjudged"].values()) == card["comparisons"]
        return "gave no verdict on any pair" if unjudged else "prefers neither response of any pair"
    text = f"agrees with people in {shown(people['same'], percent=True)} of {people['questions']:,} questions"
    text += f", kappa {shown(people['kappa'])}, AC1 {shown(people['ac1'])}"
    return f"{text}; {card['no_judge']}" if card["no_judge"] else text


def _position(card: Mapping[str, Any]) -> Iterable[str]:
    first = card["named_first"]
    for which, mean, low in (("first", first["mean"], first["low"]), ("second", *_turned(first))):
        if mean is not None and low is not None and mean >= ONE_POSITION and low > SURELY:
            yield f"it names the {which} answer that it reads in {mean:.0%} of questions"


def _turned(share: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The mean and the low end of what remains to 1."""
    mean, high = share["mean"], share["high"]
    return None if mean is None else 1 - mean, None if high is None else 1 - high


def _coin(card: Mapping[str, Any]) -> Iterable[str]:
    """It is clear that a judge is near a coin; a few pairs are not enough to say so."""
    shown = statistics.shown
    if (people := card.get("people")) and _like_a_coin(people["same"]):
        yield f"it agrees with people in {shown(people['same'], percent=True)}, no better than a coin"
    if (repeated := card.get("repeated")) and _like_a_coin(repeated["same"]):
        yield f"asked again, it says the same in {shown(repeated['same'], percent=True)}, no better than a coin"
    swayed = card["inconsistent"]
    if swayed["low"] is not None and swayed["low"] > HALF_BY_ORDER and swayed["high"] >= COIN:
        yield f"the order decides {shown(swayed, percent=True)} of pairs, and would decide 50% of a coin's"


def _like_a_coin(share: Mapping[str, Any]) -> bool:
    low, high = share["low"], share["high"]
    return low is not None and high is not None and low <= COIN and high < USEFUL


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
