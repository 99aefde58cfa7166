"""How far the people who labeled a store agree, in brief: for the reports of runs and of steps that ask people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.evaluation.statistics import shown
from alignkit.report import Table
from alignkit_apps.feedback.effective_labels import Labeled
from alignkit_apps.feedback.measure import measured
from alignkit_apps.feedback.questions import questions_of

Facts = Mapping[str, Any]
ALONE = "no item has labels of two people: a larger overlap shows how far they agree"
MEANING = "Cohen's kappa of two people, else Fleiss'; for ratings in an order, Gwet's AC2 and the ordinal alpha"
_KAPPA, _AC = ("cohen_kappa", "fleiss_kappa"), ("gwet_ac2", "gwet_ac1")
_ALPHA = ("alpha_ordinal", "alpha_nominal")


def agreement(entries: Sequence[Labeled]) -> list[dict[str, Any]]:
    """For each question that the items ask, how far people agree, as `measure.measured` says it: plain JSON.

    With each other, by annotator, over time, with gold labels, and with the opinions of rewards and judges. Intervals
    are of a bootstrap over items.
    """
    return [measured(question) for question in questions_of(entries)]


def agreement_tables(facts: Sequence[Facts], name: str = "") -> list[Table]:
    """Tables of what `agreement` returned; none without labels. name: of the store or stage, for the titles."""
    of = f" ({name})" if name else ""
    tables = [_between(facts, of), _rankings(facts, of), _annotators(facts, of), _references(facts, of)]
    return [table for table in tables if table.rows]


def _between(facts: Sequence[Facts], of: str) -> Table:
    """A row per question; rankings have a table of their own."""
    rows = [
        [*_counts(each), *(_first(each["coefficients"], names) for names in (("agreement",), _KAPPA, _AC, _ALPHA))]
        for each in facts
        if each["kind"] != "ranking"
    ]
    heads = ["question", "ratings", "people", "items with several", "raw", "kappa", "Gwet's AC", "alpha"]
    if all(not each["items with several ratings"] for each in facts):  # nothing is known of the last four
        return Table(f"how far annotators agree{of}", heads[:4], [row[:4] for row in rows], note=ALONE)
    return Table(f"how far annotators agree{of}", heads, rows, note=MEANING)


def _rankings(facts: Sequence[Facts], of: str) -> Table:
    names = (("agreement",), ("tau_b",), ("w",))
    rows = [
        [*_counts(each), *(_first(each["coefficients"], name) for name in names)]
        for each in facts
        if each["kind"] == "ranking"
    ]
    heads = ["question", "ratings", "people", "items with several", "pairs alike", "Kendall's tau-b", "Kendall's W"]
    return Table(f"how far annotators rank alike{of}", heads, rows)


def _counts(each: Facts) -> list[str]:
    return [
        each["question"], str(each["ratings"]), str(len(each["annotators"])), str(each["items with several ratings"]),
    ]  # fmt: skip


def _first(coefficients: Facts, names: Sequence[str]) -> str:
    """The first coefficient that was measured."""
    found = next((coefficients[name] for name in names if name in coefficients), None)
    return shown(found) if found is not None else "-"


def _annotators(facts: Sequence[Facts], of: str) -> Table:
    rows = [
        [each["question"], who, str(row["ratings"]), _percent(row["with others"]), _percent(row["with gold"])]
        for each in facts
        for who, row in each["annotators"].items()
        if row["with others"] or row["with gold"]
    ]
    return Table(f"annotators{of}", ["question", "annotator", "ratings", "with others", "with gold"], rows, keys=2)


def _references(facts: Sequence[Facts], of: str) -> Table:
    """Gold labels, rewards and judges, each against people."""
    rows = [
        [each["question"], name, *map(_percent, (found["ratings"], found["majority"])), _first(found, _KAPPA)]
        for each in facts
        for name, found in {"gold labels": each["gold"], **each["against"]}.items()
        if found
    ]
    heads = ["question", "with", "single ratings", "the majority", "Cohen's kappa"]
    return Table(f"people against gold labels, rewards and judges{of}", heads, rows, keys=2)


def _percent(share: Any) -> str:
    return shown(share, percent=True)
