"""The command `alignkit labels agree`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.outcome import Result

if TYPE_CHECKING:
    from alignkit_apps.labels.annotations import Columns
    from alignkit_plugins.people.questions import Habit, Question


def agree(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Stores of feedback, jsonl, json or csv.")],
    ratings: Annotated[
        str, typer.Option(metavar="COLUMN,...", help="The rating, or a column for each annotator. Default: found.")
    ] = "",
    item: Annotated[
        str, typer.Option(metavar="COLUMN,...", help="What identifies an item, if each rating has a row.")
    ] = "",
    annotator: Annotated[str, typer.Option(metavar="COLUMN", help="Who rated, if each rating has a row.")] = "",
    sides: Annotated[
        str, typer.Option(metavar="COLUMN,COLUMN", help="What is compared, if annotators saw it in either order.")
    ] = "",
    levels: Annotated[str, typer.Option(metavar="VALUE,...", help="The ratings, from one end to the other.")] = "",
    ordinal: Annotated[bool, typer.Option("--ordinal", help="The ratings are numbers whose order counts.")] = False,
    gold: Annotated[str, typer.Option(metavar="COLUMN", help="The right rating.")] = "",
    against: Annotated[
        str, typer.Option(metavar="COLUMN", help="Also compare with this column: a judge's or a reward's verdict.")
    ] = "",
    by: Annotated[str, typer.Option(metavar="COLUMN", help="Over this column instead of days.")] = "",
    time: Annotated[str, typer.Option(metavar="COLUMN", help="When it was rated. Default: found.")] = "",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> Result:
    """Measure how much labelers agree.

    With each other, over time, with gold labels, and with a judge: raw agreement, Cohen's and Fleiss' kappa, Gwet's AC1
    and AC2, Krippendorff's alpha, and for rankings Kendall's tau-b and W, each with a 95% interval of a bootstrap over
    items.

    \b
    Examples:
      alignkit labels agree labels.feedback --against reward
      alignkit labels agree pairs.csv --ratings annotator1,annotator2,annotator3
      alignkit labels agree votes.jsonl --ratings vote --levels A,tie,B --json
    """
    from alignkit_apps.labels.annotations import Columns
    from alignkit_plugins.people.measure import habit_facts, measured

    lists = {"ratings": ratings, "item": item, "sides": sides, "levels": levels}
    split = {name: tuple(part.strip() for part in text.split(",") if part.strip()) for name, text in lists.items()}
    columns = Columns(annotator=annotator, time=time, gold=gold, against=against, by=by, ordinal=ordinal, **split)
    facts: list[dict[str, Any]] = []
    for path in files:
        questions, habits = _read(path, columns)
        found = [measured(question, seed) for question in questions]
        facts.append({"file": str(path), "questions": found, "habits": habit_facts(habits)})
    return _result(facts)


def _read(path: Path, columns: Columns) -> tuple[list[Question], dict[str, Habit]]:
    from alignkit.errors import DataError
    from alignkit_apps.labels.annotations import read_table
    from alignkit_plugins.people.database import SUFFIX
    from alignkit_plugins.people.effective_labels import labeled
    from alignkit_plugins.people.questions import habits_of, questions_of
    from alignkit_plugins.people.store import Store

    if path.suffix != SUFFIX:
        return [read_table(path, columns)], {}
    with Store.open(path, write=False) as store:
        entries = labeled(store)
    questions = questions_of(entries, columns.against)
    if not questions:
        raise DataError(f"{path}: the store has no labels that can be compared")
    return questions, habits_of(entries)


def _result(facts: list[dict[str, Any]]) -> Result:
    from alignkit.report import Block, Report
    from alignkit_apps.catalog.printing import reported
    from alignkit_plugins.people.agreement_summary import agreement_tables, habit_table

    parts: list[Block] = []
    for entry in facts:
        parts += [entry["file"], *agreement_tables(entry["questions"])]
        if entry["habits"]:
            parts.append(habit_table(entry["habits"]))
        if any(question["unordered numbers"] for question in entry["questions"]):
            parts.append("ratings are numbers: if their order means something, --ordinal adds coefficients for it")
    return reported(Report(parts), "agreement", facts)
