"""How far the people who labeled a store agree: for `labels agree`, and the reports of runs and of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.evaluation.statistics import shown
from alignkit.report import Table
from alignkit_plugins.people.effective_labels import Labeled
from alignkit_plugins.people.measure import TITLES, measured
from alignkit_plugins.people.questions import questions_of

Facts = Mapping[str, Any]
ALONE = "no item has labels of two people: a larger overlap shows how far they agree"
SHARES = ("left", "longer", "same again")


def agreement(entries: Sequence[Labeled]) -> list[dict[str, Any]]:
    """For each question that the items ask, how far people agree, as `measure.measured` says it: plain JSON.

    With each other, by annotator, over time, with gold labels, and with the opinions of rewards and judges. Intervals
    are of a bootstrap over items.
    """
    return [measured(question) for question in questions_of(entries)]


def agreement_tables(facts: Sequence[Facts], name: str = "") -> list[Table]:
    """Tables of what `agreement` returned; none without labels. name: of the store or stage, for the titles."""
    of = f" ({name})" if name else ""
    tables = [_between(facts, of), _annotators(facts, of), _references(facts, of), _over_time(facts, of)]
    return [table for table in tables if table.rows]


def _between(facts: Sequence[Facts], of: str) -> Table:
    """A row per coefficient. items: with labels of several people; `-` for a question without any."""
    rows = [
        [each["question"], TITLES[name], shown(value), str(value["n"])]
        for each in facts
        if each["items with several ratings"]
        for name, value in each["coefficients"].items()
    ]
    alone = [[each["question"], "-", "-", "0"] for each in facts if not each["items with several ratings"]]
    heads, note = ["question", "coefficient", "value", "items"], ALONE if alone and not rows else ""
    return Table(f"how far annotators agree{of}", heads, [*rows, *alone], keys=2, note=note)


def _annotators(facts: Sequence[Facts], of: str) -> Table:
    rows = [
        [each["question"], who, str(row["ratings"]), _percent(row["with others"]), _percent(row["with gold"])]
        for each in facts
        for who, row in each["annotators"].items()
    ]
    return Table(f"annotators{of}", ["question", "annotator", "ratings", "with others", "with gold"], rows, keys=2)


def _references(facts: Sequence[Facts], of: str) -> Table:
    """Gold labels, rewards and judges, each against people."""
    rows = [
        [each["question"], name, *map(_percent, (found["ratings"], found["majority"])), shown(found.get("cohen_kappa"))]
        for each in facts
        for name, found in {"gold labels": each["gold"], **each["against"]}.items()
        if found
    ]
    heads = ["question", "with", "single ratings", "the majority", "Cohen's kappa"]
    return Table(f"people against gold labels, rewards and judges{of}", heads, rows, keys=2)


def _over_time(facts: Sequence[Facts], of: str) -> Table:
    rows = [
        [each["question"], row["when"], str(row["items"]), _percent(row["agreement"]), _number(row.get("alpha"))]
        for each in facts
        for row in each["over time"]
    ]
    return Table(f"agreement over time{of}", ["question", "when", "items", "agreement", "alpha"], rows, keys=2)


def habit_table(habits: Mapping[str, Facts]) -> Table:
    """How the annotators of a store work, as `measure.habit_facts` says it."""
    rows = [
        [who, *(_percent(row[name]) for name in SHARES), _number(row["median seconds"]), str(row["longest run"])]
        for who, row in habits.items()
    ]
    heads = ["annotator", "prefers the left", "prefers the longer", "same again", "median seconds", "longest run"]
    note = "same again: repeated items with the same answer; longest run: pairs in a row for the same side"
    return Table("how annotators work", heads, rows, note=note)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(share: Any) -> str:
    return shown(share, percent=True)
