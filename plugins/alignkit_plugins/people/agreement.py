"""How far the people who labeled a store agree: with each other, and with gold labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from alignkit.evaluation.statistics import Share, clustered_share, shown
from alignkit.report import Table
from alignkit_plugins.krippendorff import Level, agreement_of, categories
from alignkit_plugins.people.effective_labels import Labeled
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import Label, degree

FEW = 50  # items of several people, below which their agreement is hardly known


@dataclass(frozen=True)
class Unit:
    """One answer that people give about an item: their ratings by name, and the right one; None if
    there is none.
    """

    item: str
    ratings: Mapping[str, Any]
    gold: Any


def agreement(entries: Iterable[Labeled]) -> list[dict[str, Any]]:
    """How far people agree on each question that the items ask, as plain JSON.

    items, shared: with a label, and with labels of several people. categories: how often each
    rating was counted. same, alpha: of `agreement_of`. gold: the share of ratings that are right.
    people: for each the items, the share of the others' ratings that are the same, and the share of
    right ones. Everything about an item is one cluster.
    """
    questions: dict[str, tuple[Level, list[Unit]]] = {}
    for entry in entries:
        if entry.votes and not entry.stored.retired:
            for name, level, rating in _questions(entry.stored.item):
                ratings = {vote.annotator: rating(vote.label) for vote in entry.votes}
                ratings = {who: value for who, value in ratings.items() if value is not None}
                gold = None if entry.gold is None else rating(entry.gold)
                questions.setdefault(name, (level, []))[1].append(
                    Unit(entry.stored.item.id, ratings, gold)
                )
    return [_measured(name, level, units) for name, (level, units) in questions.items()]


def _questions(item: Item) -> Iterator[tuple[str, Level, Callable[[Label], Any]]]:
    """What the task of an item asks: a name, and how to read the rating from a label.

    Data often have the better response first. If that one was always the same rating, alpha would
    take the people's agreement for a habit of saying it. So which of two responses is 0 is drawn by
    lot.
    """
    lot = int(item.id, 16)
    if item.task in ("pair", "safety"):
        sign = 1 if lot % 2 else -1
        yield (
            f"{item.task}: which is better",
            "nominal",
            lambda label: int(label["better"]) ^ (lot % 2),
        )
        yield (
            f"{item.task}: how much better",
            "ordinal",
            lambda label: sign * degree(label) if "margin" in label else None,
        )
    if item.task == "safety":
        yield "safety: which bin", "nominal", lambda label: label.get("safety")
    if item.task in ("ranking", "review"):
        for number, (one, other) in enumerate(combinations(range(len(item.responses)), 2)):
            first, second = (one, other) if lot >> number & 1 else (other, one)
            name = f"{item.task}: which of two is better"
            yield name, "nominal", partial(_better, one=first, other=second)
    if item.task == "scores":
        for place in range(len(item.responses)):
            for name in item.criteria:
                yield f"scores: {name}", "ordinal", partial(_score, place=place, criterion=name)
    if item.task == "thumb":
        yield "thumb", "nominal", lambda label: label["good"]


def _better(label: Label, one: int, other: int) -> bool | None:
    """Whether a ranking prefers a response to another one; None for a tie."""
    ranks = label["ranks"]
    return None if ranks[one] == ranks[other] else ranks[one] < ranks[other]


def _score(label: Label, place: int, criterion: str) -> Any:
    return label["scores"][place][criterion]


def _measured(name: str, level: Level, units: Sequence[Unit]) -> dict[str, Any]:
    right: dict[str, list[tuple[str, float]]] = defaultdict(list)
    alike: dict[str, list[tuple[str, float]]] = defaultdict(list)
    items: dict[str, set[str]] = defaultdict(set)
    for unit in units:
        for who, rating in unit.ratings.items():
            items[who].add(unit.item)
            if unit.gold is not None:
                right[who].append((unit.item, float(rating == unit.gold)))
        for one, other in combinations(unit.ratings, 2):
            same = float(unit.ratings[one] == unit.ratings[other])
            alike[one].append((unit.item, same))
            alike[other].append((unit.item, same))
    ratings = [list(unit.ratings.values()) for unit in units]
    return {
        "question": name,
        "items": len(set().union(*items.values())),
        "categories": categories(ratings),
        "shared": len({unit.item for unit in units if len(unit.ratings) > 1}),
        **agreement_of(ratings, level, clusters=[unit.item for unit in units]),
        "gold": _share(case for cases in right.values() for case in cases),
        "people": {
            who: {
                "items": len(items[who]),
                "with_others": _share(alike[who]),
                "with_gold": _share(right[who]),
            }
            for who in sorted(items)
        },
    }


def _share(cases: Iterable[tuple[str, float]]) -> Share | None:
    clusters: dict[str, list[float]] = defaultdict(list)
    for item, value in cases:
        clusters[item].append(value)
    return clustered_share(list(clusters.values()))


def sentence(facts: Sequence[Mapping[str, Any]]) -> str:
    """How far people agree on the first question of each task, of what `agreement` returned; empty
    without labels.
    """
    told = []
    for task, each in _main(facts).items():
        alpha = each["alpha"]
        if not each["shared"]:
            told.append(
                f"{task}: no item has labels of two people, so how far they agree is not known"
            )
            continue
        same = shown(
            each["same"] if alpha["mean"] is None else {**each["same"], "low": None}, percent=True
        )
        text = f"{task}: {same} of labels agree" + (
            "" if alpha["mean"] is None else f", alpha {shown(alpha)}"
        )
        told.append(
            f"{text} over {each['shared']} items"
            + (": too few items to say" if each["shared"] < FEW else "")
        )
    return "\n".join(told)


def people_table(facts: Sequence[Mapping[str, Any]], title: str = "annotators") -> Table:
    """How often the others say the same as each person, and how often it is the gold label, for the
    same questions.
    """
    rows = []
    for task, each in _main(facts).items():
        for who, person in each["people"].items():
            shares = [shown(person[key], percent=True) for key in ("with_others", "with_gold")]
            rows.append([task, who, str(person["items"]), *shares])
    return Table(
        title, ["task", "annotator", "items", "same as others", "right on gold items"], rows, keys=2
    )


def _main(facts: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The first question of each task."""
    first: dict[str, Mapping[str, Any]] = {}
    for each in facts:
        first.setdefault(each["question"].partition(":")[0], each)
    return first
