"""The agreement of labelers on one question: coefficients, annotators, days, gold labels, judges and rewards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

from alignkit.evaluation import agreement, concordance, statistics
from alignkit.evaluation.statistics import Estimate, Share
from alignkit_plugins.people.effective_labels import places
from alignkit_plugins.people.questions import Habit, Question, Unit

Facts = dict[str, Any]
TITLES = {
    "agreement": "raw agreement",
    "cohen_kappa": "Cohen's kappa",
    "fleiss_kappa": "Fleiss' kappa",
    "gwet_ac1": "Gwet's AC1",
    "gwet_ac2": "Gwet's AC2",
    "alpha_nominal": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "tau_b": "Kendall's tau-b",
    "w": "Kendall's W",
}


def measured(question: Question, seed: int = 0) -> Facts:
    """Everything about one question, as plain data; intervals are of a bootstrap over items."""
    units = question.units
    several = [unit for unit in units if len(_known(unit)) > 1]
    people = sorted({who for unit in units for who in _known(unit)})
    others = sorted({name for unit in units for name in unit.others})
    return {
        "question": question.name,
        "kind": question.kind,
        "unordered numbers": question.kind == "nominal" and _numeric(units),
        "items": sum(bool(_known(unit)) for unit in units),
        "items with several ratings": len(several),
        "ratings": sum(len(_known(unit)) for unit in units),
        "coefficients": _coefficients(question, several, people, seed),
        "annotators": {who: _annotator(question, who) for who in people},
        "over time": _over_time(question, several),
        "gold": _against(question),
        "against": {name: found for name in others if (found := _against(question, name))},
    }


def _known(unit: Unit) -> dict[str, Any]:
    return {who: rating for who, rating in unit.ratings.items() if rating is not None}


def _cluster(unit: Unit) -> str | int:
    """What the ratings that depend on each other share: those of a unit, or of all units of its item."""
    return unit.cluster or id(unit)


def _share(cases: Iterable[tuple[Unit, float]]) -> Share | None:
    found: dict[str | int, list[float]] = defaultdict(list)
    for unit, value in cases:
        found[_cluster(unit)].append(value)
    return statistics.clustered_share(list(found.values()))


def _numeric(units: Sequence[Unit]) -> bool:
    given = {rating for unit in units for rating in _known(unit).values()}
    return len(given) > 2 and all(isinstance(rating, float) for rating in given)


def _coefficients(question: Question, several: Sequence[Unit], people: Sequence[str], seed: int) -> Facts:
    if question.kind == "ranking":
        return _of_rankings(several, seed)
    units = [list(_known(unit).values()) for unit in question.units]
    clusters = [_cluster(unit) for unit in question.units]
    interval = partial(agreement.interval, units, seed=seed, clusters=clusters)
    found: Facts = {"agreement": interval("agreement")}
    if len(people) == 2:
        both: dict[str | int, list[Any]] = defaultdict(list)
        for unit, cluster in zip(question.units, clusters, strict=True):
            both[cluster].append((unit.ratings.get(people[0]), unit.ratings.get(people[1])))
        found["cohen_kappa"] = agreement.two_raters(list(both.values()), seed=seed)["kappa"]
    if len({len(_known(unit)) for unit in several}) == 1:
        found["fleiss_kappa"] = interval("fleiss_kappa")
    known: Sequence[Any] = question.categories
    found["gwet_ac1"] = interval("gwet_ac1", categories=known)
    if question.kind == "ordinal":
        found["gwet_ac2"] = interval("gwet_ac2", categories=known)
    found["alpha_nominal"] = interval("alpha_nominal")
    if question.kind == "ordinal":
        found["alpha_ordinal"] = interval("alpha_ordinal")
    return found


def _of_rankings(several: Sequence[Unit], seed: int) -> Facts:
    """Agreement on pairs of responses, and means over items of tau-b and W."""
    ranked = [list(_known(unit).values()) for unit in several]
    pairs = [_alike(rankings) for rankings in ranked]
    alike, compared = [sum(column) for column in zip(*pairs, strict=True)] if pairs else (0, 0)

    def share(drawn: Iterable[int]) -> float | None:
        chosen = [pairs[index] for index in drawn]
        total = sum(count for _, count in chosen)
        return sum(same for same, _ in chosen) / total if total else None

    raw = agreement.bootstrap(alike / compared if compared else None, len(pairs), share, seed=seed)
    return {
        "agreement": raw,
        "tau_b": _mean_over_items([concordance.mean_tau_b(rankings) for rankings in ranked], seed),
        "w": _mean_over_items([concordance.kendall_w(rankings) for rankings in ranked], seed),
    }


def _alike(rankings: Sequence[Sequence[float]]) -> tuple[int, int]:
    """Of the pairs of responses that two rankings both order, over all pairs of rankings: how many alike, how many."""
    alike = compared = 0
    for one, other in combinations(rankings, 2):
        for i, j in combinations(range(len(one)), 2):
            sign = (one[i] - one[j]) * (other[i] - other[j])
            alike += sign > 0
            compared += sign != 0
    return alike, compared


def _mean_over_items(values: Sequence[float | None], seed: int) -> Estimate:
    known = [value for value in values if value is not None]
    found = statistics.mean(known) if known else None
    return agreement.bootstrap(
        found, len(known), lambda drawn: statistics.mean([known[index] for index in drawn]), seed=seed
    )


def _same(question: Question, one: Any, other: Any) -> float | None:
    """How much two ratings agree, from 0 to 1; None if they cannot be compared."""
    if one is None or other is None:
        return None
    if question.kind == "ranking":
        alike, compared = _alike([one, other])
        return alike / compared if compared else None
    return float(one == other)


def _annotator(question: Question, who: str) -> Facts:
    """One annotator: the number of ratings, and the agreement with all others on the same items, with gold."""
    own = [unit for unit in question.units if unit.ratings.get(who) is not None]
    others = [
        (unit, same)
        for unit in own
        for other, rating in unit.ratings.items()
        if other != who and (same := _same(question, unit.ratings[who], rating)) is not None
    ]
    gold = [(unit, same) for unit in own if (same := _same(question, unit.ratings[who], unit.gold)) is not None]
    return {
        "ratings": len(own),
        "with others": _share(others),
        "with gold": _share(gold),
    }


def _over_time(question: Question, several: Sequence[Unit]) -> list[Facts]:
    """Agreement by batch, or else by the day of an item's last rating."""
    groups: dict[str, list[Unit]] = defaultdict(list)
    for unit in several:
        if when := unit.batch or max(map(day, unit.times.values()), default=""):
            groups[when].append(unit)
    found = []
    for when, units in sorted(groups.items()):
        shares = [
            (unit, same)
            for unit in units
            for one, other in combinations(_known(unit).values(), 2)
            if (same := _same(question, one, other)) is not None
        ]
        row: Facts = {"when": when, "items": len(units), "agreement": _share(shares)}
        if question.kind != "ranking":
            ratings = [list(_known(unit).values()) for unit in units]
            row["alpha"] = agreement.krippendorff_alpha(ratings, question.kind)
        found.append(row)
    return found if len(found) > 1 else []


def day(time: str) -> str:
    """The day of a time: of an ISO date, of seconds or milliseconds since 1970, or of a spreadsheet's serial number."""
    try:
        number = float(time)
    except ValueError:
        return time[:10]
    if not 1 <= number < 1e13:
        return time[:10]
    if number < 1e6:
        return (date(1899, 12, 30) + timedelta(days=int(number))).isoformat()
    return datetime.fromtimestamp(number / (1000 if number >= 1e11 else 1), UTC).date().isoformat()


def _against(question: Question, other: str | None = None) -> Facts | None:
    """The agreement of single ratings, and of the majority's, with another rating, or with gold; None without any."""
    single: list[tuple[Unit, float]] = []
    joint: list[tuple[Unit, float]] = []
    pairs: dict[str | int, list[Any]] = defaultdict(list)
    for unit in question.units:
        if (right := unit.gold if other is None else unit.others.get(other)) is None:
            continue
        ratings = list(_known(unit).values())
        single += [(unit, same) for rating in ratings if (same := _same(question, rating, right)) is not None]
        usual = _usual(question, ratings)
        if (same := _same(question, usual, right)) is not None:
            joint.append((unit, same))
            pairs[_cluster(unit)].append((usual, right))
    if not single:
        return None
    found: Facts = {
        "ratings": _share(single),
        "majority": _share(joint),
    }
    if question.kind != "ranking" and pairs:
        found["cohen_kappa"] = agreement.two_raters(list(pairs.values()), seed=0)["kappa"]
    return found


def _usual(question: Question, ratings: Sequence[Any]) -> Any:
    """The most frequent rating, or the mean ranking; None if two are equally frequent."""
    if question.kind == "ranking":
        return places([statistics.mean(ranks) for ranks in zip(*ratings, strict=True)]) if ratings else None
    best = Counter(ratings).most_common(2)
    return best[0][0] if best and (len(best) == 1 or best[0][1] > best[1][1]) else None


def habit_facts(habits: dict[str, Habit]) -> dict[str, Facts]:
    """How annotators work, as plain data."""
    return {
        who: {
            "left": statistics.share(habit.left, habit.pairs),
            "longer": statistics.share(habit.longer, habit.uneven),
            "same again": statistics.share(habit.same, habit.again),
            "median seconds": median(habit.seconds) if habit.seconds else None,
            "longest run": habit.longest_run,
        }
        for who, habit in sorted(habits.items())
    }
