"""How far the people agree whose labels a run learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.io.results import AGREEMENT
from alignkit.report import Table
from alignkit_plugins.people.agreement import people_table, sentence
from alignkit_plugins.report.data_cards import brief_name
from alignkit_plugins.report.files import read_object
from alignkit_plugins.report.stages import sources_of

MOST = 12  # stores


def people_of(
    name: str, record: Mapping[str, Any], folder: Path | None = None
) -> list[dict[str, Any]]:
    """The stores that a stage read, and the labels that it asked for, each with
    `people.agreement.agreement`.

    record: its stage.json. folder: the stage's; None leaves out what it asked people, which its own
    report shows.
    """
    found = []
    for source in sources_of(record):
        if "agreement" in source:
            one = {"stage": name, "source": source.get("name"), "agreement": source["agreement"]}
            found.append({**one, "notes": source["notes"]} if source.get("notes") else one)
    asked = read_object(folder / AGREEMENT).get("questions") if folder is not None else None
    return found + ([{"stage": name, "source": "", "agreement": asked}] if asked else [])


def people_blocks(people: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Table]]:
    """How far people agree on the labels of each store, a sentence each, and the tables of
    annotators.

    Stages that read the same labels share them. The last table is whose labels count.
    """
    told, tables = [], []
    for title, agreement in _different(people):
        table = people_table(agreement, f"annotators ({title})")
        if table.rows:
            told += [f"{title}: {line}" for line in sentence(agreement).splitlines()]
            tables.append(table)
    notes = [
        [str(one["stage"]), brief_name(one["source"]), note]
        for one in people
        for note in one.get("notes", ())
    ]
    if notes:
        tables.append(Table("whose labels count", ["stage", "source", "decision"], notes, keys=2))
    return told, tables


def _different(people: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    known: list[tuple[Any, list[str]]] = []
    for one in people:
        same = next((names for agreement, names in known if agreement == one["agreement"]), None)
        if same is None:
            known.append(
                (one["agreement"], same := [brief_name(one["source"])] if one["source"] else [])
            )
        same.append(str(one["stage"]))
    for agreement, names in known[:MOST]:
        yield ", ".join(dict.fromkeys(names)), agreement
