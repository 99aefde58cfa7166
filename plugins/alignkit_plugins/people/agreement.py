"""How far the people who labeled a store agree, with each other and with gold labels; and what
recipes read of a store.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from alignkit import Reader
from alignkit.contract.report import Table
from alignkit.data.files import NumberedRows
from alignkit.data.group import group_to_json, with_responses
from alignkit.errors import LeftOut
from alignkit.evaluation.statistics import (
    Share,
    agreement_of,
    agreement_text,
    clustered_share,
    interval_text,
)
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import Consent, Flag, Label, gaps
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import UNLABELED, Labeled, labeled, labeled_groups, with_units

# By the pairs that a label compares: whether the first is better
Rating = dict[tuple[int, int], bool]
Cases = defaultdict[Any, list[tuple[bool, int]]]  # such as a person -> yes or no, and the unit


def agreement(entries: Iterable[Labeled], left_out: Collection[str] = ()) -> list[dict[str, Any]]:
    """How far people agree in each task, as plain JSON: which of two responses is better, or
    whether one is good.

    items, shared: with a label, and with labels of several people. same, alpha: of `agreement_of`.
    people: for each the items, the share of the others' ratings that are the same, and the share of
    right ones. Everything about a prompt is one cluster. left_out: people with whom nobody has to
    agree.
    """
    tasks: dict[str, list[Labeled]] = defaultdict(list)
    for entry in entries:
        if entry.votes and entry.counts:
            tasks[entry.item.task].append(entry)
    measured = [_measured(task, those, left_out) for task, those in tasks.items()]
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


def _measured(task: str, entries: Sequence[Labeled], left_out: Collection[str]) -> dict[str, Any]:
    units, clusters = list[list[bool]](), list[int]()
    shared, items = set[str](), defaultdict[str, set[str]](set)
    with_others, with_gold = Cases(list), Cases(list)
    for prompt, entry in with_units(entries):
        item = entry.item
        gold = _ratings(item, dict(item.gold or {}))
        comparisons: dict[tuple[int, int], dict[str, bool]] = defaultdict(dict)
        for who, label in entry.votes.items():
            if who == item.settled_by:
                continue  # asked only where the others disagree
            for two, rating in _ratings(item, label).items():
                comparisons[two][who] = rating
        for two, ratings in comparisons.items():
            counted = {who: rating for who, rating in ratings.items() if who not in left_out}
            units.append(list(counted.values()))
            clusters.append(prompt)
            if len(counted) > 1:
                shared.add(item.id)
            for who, rating in ratings.items():
                items[who].add(item.id)
                for name, other in counted.items():
                    if name != who:
                        with_others[who].append((rating == other, prompt))
                if two in gold:
                    with_gold[who].append((rating == gold[two], prompt))
    people = {}
    for who, own in sorted(items.items()):
        shares = {"with_others": _share(with_others[who]), "with_gold": _share(with_gold[who])}
        people[who] = {"items": len(own), **shares}
    return {
        "question": task,
        "items": len(set().union(*items.values())),
        "shared": len(shared),
        **agreement_of(units, clusters=clusters),
        "people": people,
    }


def _share(cases: Sequence[tuple[bool, int]]) -> Share | None:
    return clustered_share([same for same, _ in cases], [prompt for _, prompt in cases])


def sentence(facts: Sequence[Mapping[str, Any]]) -> str:
    """How far people agree in each task, of what `agreement` returned; empty without labels."""
    lines = []
    for each in facts:
        text = "no item has labels of two people, so how far they agree is not known"
        if each["shared"]:
            text = agreement_text(each, each["shared"])
        lines.append(f"{each['question']}: {text}")
    return "\n".join(lines)


def people_table(
    facts: Sequence[Mapping[str, Any]], title: str, consents: Mapping[str, Consent]
) -> Table:
    """How often the others say the same as each person, and how often it is the gold label, and
    what people who agree to share it say of themselves.
    """
    about = {who: consent.about for who, consent in consents.items()}
    heads = ["task", "annotator", "items", "same as others", "right on gold items"]
    heads += ["about"] * any(about.values())
    rows = []
    for each in facts:
        for who, person in each["people"].items():
            shares = [
                interval_text(person[key], percent=True) for key in ("with_others", "with_gold")
            ]
            known = each["question"], who, str(person["items"])
            rows.append([*known, *shares, about.get(who, "")][: len(heads)])
    return Table(title, heads, rows, keys=2)


def said_of_sources(entries: Sequence[Labeled]) -> Table:
    """How often people find the answers of each source good, or flag them, such as those of a policy
    that people attacked. The unit of the intervals is a prompt.
    """
    cases = Cases(list)
    for unit, entry in with_units(entries):
        task = entry.item.task
        for group in labeled_groups(entry):
            for place, answer in enumerate(group.responses):
                source = answer.source or "-"
                if task == "thumb":
                    cases[source, "good"].append((bool(answer.label), unit))
                for flag in get_args(Flag) if entry.is_scored else ():
                    cases[source, flag].append((flag in group.meta["flags"][place], unit))
    rows = []
    for (source, word), own in cases.items():
        share = interval_text(_share(own), percent=True)
        rows.append([source, word, str(len(own)), share])
    return Table("Answers", ["source", "people say", "answers", "share"], rows, keys=2)


# What recipes read


class StoreReader(Reader):
    """Labels of people, which runs ask for, as groups. How far the annotators agree is what reports
    show of them.
    """

    grows = True

    def rows(self, path: Path) -> NumberedRows:
        """The groups of a store, numbered by the positions of their items, as it is now.

        An answer without a thumb, or with as many up as down, leaves its prompt. Other items without
        a label are `LeftOut`, and so are those that are flagged, that nobody is asked about any
        more, or whose author took the consent back.
        """
        with Store.open(path) as store:
            entries = labeled(store)
        for entry in entries:
            groups = labeled_groups(entry)
            if entry.item.task == "thumb" and entry.left_out in ("", UNLABELED):
                groups = groups or [with_responses(entry.item.group, ())]
            rows = [json.loads(group_to_json(group)) for group in groups]
            for row in rows or [LeftOut(entry.left_out)]:
                yield entry.stored.position, row

    def digest(self, path: Path) -> str:
        """SHA-256 of the rows that a recipe reads."""
        rows = [row for row in self.rows(path) if not isinstance(row[1], LeftOut)]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def facts(self, path: Path) -> Mapping[str, Any]:
        """How far the annotators agree."""
        with Store.open(path) as store:
            agreed = agreement(labeled(store))
        return {"agreement": agreed} if agreed else {}
