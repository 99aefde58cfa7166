"""How far the people who labeled a store agree, with each other and with gold labels, and what else
a store holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.evaluation.statistics import clustered_share, shown
from alignkit.report import Block, Table
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import Label, gaps
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import Labeled, attributes, consents, labeled

FEW = 50  # items of several people, below which their agreement is hardly known
SHARES = {True: "yes", False: "no", None: "not asked"}
Rating = dict[tuple[int, int], bool]  # of what a label compares: which of two responses is better


def agreement(
    entries: Iterable[Labeled], known: Mapping[str, Mapping[str, str]] | None = None
) -> list[dict[str, Any]]:
    """How far people agree in each task, as plain JSON: which of two responses is better, or
    whether one is good.

    items, shared: with a label, and with labels of several people. same, alpha: of `agreement_of`.
    people: for each the items, the share of the others' ratings that are the same, and the share of
    right ones. Everything about an item is one cluster. known: attributes of people, whose values
    follow the people, such as `degree: PhD`.
    """
    tasks: dict[str, list[Labeled]] = defaultdict(list)
    for entry in entries:
        if entry.votes and not entry.stored.retired:
            tasks[entry.stored.item.task].append(entry)
    measured = [_measured(task, those, known or {}) for task, those in tasks.items()]
    return [facts for facts in measured if facts["items"]]


def _ratings(item: Item, label: Label) -> Rating:
    """What a label says, in comparisons of two responses without ties; of a thumb whether it is
    good.

    Data often have the better response first. If that one was always the same rating, alpha would
    take the people's agreement for a habit of saying it. So which of two responses is the first one
    is drawn by lot.
    """
    if "good" in label:
        return {(0, 0): label["good"]}
    lot = int(item.id, 16)
    ratings = {}
    for number, (two, gap) in enumerate(gaps(label).items()):
        if gap:
            ratings[two] = (gap > 0) ^ bool(lot >> number & 1)
    return ratings


@dataclass
class _Tally:
    """The comparisons of a person, or of people with an attribute: by item, whether others and gold
    labels agree.
    """

    with_others: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    with_gold: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def _measured(
    task: str, entries: Sequence[Labeled], known: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    units: list[list[bool]] = []
    clusters: list[str] = []
    people, groups = defaultdict[str, _Tally](_Tally), defaultdict[str, _Tally](_Tally)
    for entry in entries:
        item = entry.stored.item
        gold = {} if entry.gold is None else _ratings(item, entry.gold)
        comparisons: dict[tuple[int, int], dict[str, bool]] = defaultdict(dict)
        for vote in entry.votes:
            for two, rating in _ratings(item, vote.label).items():
                comparisons[two][vote.annotator] = rating
        for two, ratings in comparisons.items():
            units.append(list(ratings.values()))
            clusters.append(item.id)
            for who, rating in ratings.items():
                others = [float(rating == other) for name, other in ratings.items() if name != who]
                of_groups = [
                    groups[f"{name}: {value}"] for name, value in known.get(who, {}).items()
                ]
                for tally in (people[who], *of_groups):
                    tally.with_others[item.id] += others
                    tally.with_gold[item.id] += [float(rating == gold[two])] if two in gold else []
    from alignkit_plugins.krippendorff import agreement_of  # imports numpy

    shared = {item for item, unit in zip(clusters, units, strict=True) if len(unit) > 1}
    return {
        "question": task,
        "items": len(set(clusters)),
        "shared": len(shared),
        **agreement_of(units, clusters=clusters),
        "people": {
            name: _facts(tally)
            for name, tally in (*sorted(people.items()), *sorted(groups.items()))
        },
    }


def _facts(tally: _Tally) -> dict[str, Any]:
    shares = {name: clustered_share(list(cases.values())) for name, cases in vars(tally).items()}
    return {"items": len(tally.with_others), **shares}


def sentence(facts: Sequence[Mapping[str, Any]]) -> str:
    """How far people agree in each task, of what `agreement` returned; empty without labels."""
    told = []
    for each in facts:
        same, alpha, shared = each["same"], each["alpha"], each["shared"]
        if not shared:
            told.append(
                f"{each['question']}: no item has labels of two people, so how far they agree is "
                "not known"
            )
            continue
        if alpha["mean"] is None:
            text = f"{shown(same, percent=True)} of labels agree"
        else:
            text = (
                f"{shown({**same, 'low': None}, percent=True)} of labels agree, alpha "
                f"{shown(alpha)}"
            )
        few = ": too few items to say" if shared < FEW else ""
        told.append(f"{each['question']}: {text} over {shared} items{few}")
    return "\n".join(told)


def people_table(facts: Sequence[Mapping[str, Any]], title: str = "annotators") -> Table:
    """How often the others say the same as each person, and how often it is the gold label."""
    rows = []
    for each in facts:
        for who, person in each["people"].items():
            shares = [shown(person[key], percent=True) for key in ("with_others", "with_gold")]
            rows.append([each["question"], who, str(person["items"]), *shares])
    return Table(
        title, ["task", "annotator", "items", "same as others", "right on gold items"], rows, keys=2
    )


# What a store holds


def overview(store: Store) -> dict[str, Any]:
    """What a store holds, as plain data: items by task, people, how far they agree, and what waits
    for a decision.
    """
    entries, agreed = labeled(store), consents(store)
    tasks, people = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for entry in entries:
        counts = tasks[entry.stored.item.task]
        counts["items"] += 1
        counts["labels"] += len(entry.votes)
        counts["read by recipes"] += entry.counts
        counts["disputed or flagged"] += entry.disputed and not entry.stored.retired
        counts["gold"] += entry.stored.item.gold is not None
        for vote in entry.votes:
            people[vote.annotator]["labels"] += 1
    for event in store.events():
        people[event.annotator][event.kind] += event.kind in ("skip", "undo")
    return {
        "store": str(store.path),
        "tasks": {task: dict(counts) for task, counts in sorted(tasks.items())},
        "people": {name: {**people[name], "shares": agreed.get(name)} for name in sorted(people)},
        "agreement": agreement(entries, attributes(store)),
        "licenses": dict(Counter(entry.stored.item.license or "none" for entry in entries)),
    }


def blocks(facts: Mapping[str, Any]) -> list[Block]:
    """The report of an overview."""
    licenses = ", ".join(f"{name} {count}" for name, count in facts["licenses"].items())
    heads = ["task", "items", "labels", "read by recipes", "disputed or flagged", "gold"]
    tasks = [
        [task, *(str(row[name]) for name in heads[1:])] for task, row in facts["tasks"].items()
    ]
    people = []
    for name, row in facts["people"].items():
        numbers = [str(row.get(kind, 0)) for kind in ("labels", "skip", "undo")]
        people.append([name, *numbers, SHARES[row["shares"]]])
    shared = people_table(facts["agreement"], "how far they agree")
    tables = [
        Table("Items", heads, tasks),
        Table("People", ["annotator", "labels", "skips", "undone", "agreed to share"], people),
        replace(shared, note=sentence(facts["agreement"])),
    ]
    return [
        f"{facts['store']}; licenses of items: {licenses or '-'}",
        *(table for table in tables if table.rows),
    ]
