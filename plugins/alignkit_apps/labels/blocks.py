"""The agreement on a question as tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.evaluation.statistics import shown
from alignkit.report import Block, Table
from alignkit_apps.feedback.measure import TITLES


def blocks(facts: Mapping[str, Any]) -> list[Block]:
    """The report of one question."""
    several = facts["items with several ratings"]
    found: list[Block] = [
        f"{facts['question']}: {facts['ratings']} ratings of {facts['items']} items by {len(facts['annotators'])} "
        f"annotators, {several} items with several ratings"
    ]
    if several:
        rows = [(TITLES[name], shown(value), str(value["n"])) for name, value in facts["coefficients"].items()]
        found.append(Table("Agreement", ("coefficient", "value [95% interval]", "items"), rows))
    found.append(_annotators(facts["annotators"]))
    if facts["over time"]:
        found.append(_over_time(facts["over time"]))
    if facts["unordered numbers"]:
        found.append(
            "the ratings are numbers: if their order means something, --ordinal adds coefficients that weigh distances"
        )
    for name, other in {"the gold labels": facts["gold"], **facts["against"]}.items():
        if other:
            found.append(_reference(f"With {name}", other))
    return found


def _over_time(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [(row["when"], str(row["items"]), _share(row["agreement"]), _number(row.get("alpha"))) for row in rows]
    return Table("Over time", ("when", "items", "agreement", "alpha"), cells)


def _annotators(annotators: Mapping[str, Any]) -> Table:
    gold = any(row["with gold"] for row in annotators.values())
    heads = ["annotator", "ratings", "agreement with others", *(["agreement with gold"] if gold else [])]
    rows = [
        (who, str(row["ratings"]), _share(row["with others"]), *([_share(row["with gold"])] if gold else []))
        for who, row in annotators.items()
    ]
    return Table("Annotators", heads, rows)


def _reference(title: str, facts: Mapping[str, Any]) -> Table:
    rows = [("single ratings", _share(facts["ratings"])), ("the majority's", _share(facts["majority"]))]
    if "cohen_kappa" in facts:
        rows.append(("Cohen's kappa of the majority's", shown(facts["cohen_kappa"])))
    return Table(title, ("ratings", "agreement"), rows)


def habit_block(habits: Mapping[str, Any]) -> Table:
    """How the annotators of a store work."""
    rows = [
        (
            who, _share(row["left"]), _share(row["longer"]), _share(row["same again"]),
            _number(row["median seconds"]), str(row["longest run"]),
        )
        for who, row in habits.items()
    ]  # fmt: skip
    heads = ("annotator", "prefers the left", "prefers the longer", "same again", "median seconds", "longest run")
    note = "same again: repeated items with the same answer; longest run: pairs in a row for the same side"
    return Table("How they work", heads, rows, note=note)


def _share(value: Any) -> str:
    return shown(value, percent=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
