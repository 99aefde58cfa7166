"""Annotations in any table: a column for each annotator, or a row for each rating."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows, raise_if_bad
from alignkit.errors import BadRow, DataError, did_you_mean
from alignkit_plugins.people.questions import Question, Unit

_WIDE = re.compile(r"(annotator|annotation|rater|labeler|judge|label|rating|vote)[ _-]?\d+", re.IGNORECASE)
_PEOPLE = ("annotator", "annotator_id", "evaluator", "rater", "labeler", "worker", "worker_id", "user")
_RATINGS = ("rating", "label", "preference", "verdict", "vote", "score", "choice", "annotation")
_ITEMS = ("item", "item_id", "id", "instance_id", "idx", "index", "unit")
_TIMES = ("time", "timestamp", "created", "created_at", "date")


@dataclass(frozen=True)
class Columns:
    """Which columns mean what. Empty ones are found by their names.

    ratings: a column for each annotator, or the one with ratings. item, annotator, time: of a table with a row for
    each rating. gold, against: the right rating, and another one to compare with. levels: the ratings from the lowest
    to the highest. ordinal: they are numbers whose order means something. sides: two columns whose values may be
    swapped between annotators of one item; then the rating is turned around, for which it needs levels. by: groups
    units in time, instead of days.
    """

    ratings: tuple[str, ...] = ()
    item: tuple[str, ...] = ()
    annotator: str = ""
    time: str = ""
    gold: str = ""
    against: str = ""
    levels: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    by: str = ""
    ordinal: bool = False


def read_table(path: Path, columns: Columns) -> Question:
    """The ratings in a table. Raises `DataError` that names the columns that are missing or were not recognized."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    bad: list[SkippedRow] = []
    for number, row in file_rows(path):
        try:
            if not isinstance(raise_if_bad(row), Mapping):
                raise BadRow("expected an object with columns")
            rows.append((number, row))
        except BadRow as error:
            bad.append(SkippedRow(str(path), number, str(error)))
    if bad:
        raise bad_rows_error(bad)
    if not rows:
        raise DataError(f"{path}: there are no rows")
    known = list(dict.fromkeys(name for _, row in rows for name in row))
    for name in _named(columns):
        if name not in known:
            raise DataError(
                f"{path}: no column {name!r}; {did_you_mean(name, known) or 'the columns are ' + ', '.join(known)}"
            )
    question = _wide(path, rows, known, columns) or _long(path, rows, known, columns)
    return _leveled(question, columns, path)


def _named(columns: Columns) -> Iterator[str]:
    single = (columns.annotator, columns.time, columns.gold, columns.against, columns.by)
    yield from (name for name in (*columns.ratings, *columns.item, *columns.sides, *single) if name)


def _wide(
    path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], known: Sequence[str], columns: Columns
) -> Question | None:
    """A row for each item, with a column for each annotator; None if the table is not like that."""
    people = columns.ratings or tuple(name for name in known if _WIDE.fullmatch(name))
    if len(people) < 2 or columns.annotator:
        return None
    found = Question(path.name, "nominal")
    for number, row in rows:
        unit = Unit(str(number), {name: _value(row.get(name)) for name in people})
        time = _cell(row, columns.time)
        unit.times = dict.fromkeys(people, time) if time else {}
        _fill(unit, row, columns)
        found.units.append(unit)
    return found


def _long(
    path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], known: Sequence[str], columns: Columns
) -> Question:
    """A row for each rating."""
    person = columns.annotator or _first(_PEOPLE, known)
    rating = columns.ratings[0] if columns.ratings else _first(_RATINGS, known)
    item = columns.item or tuple(name for name in [_first(_ITEMS, known)] if name)
    missing = [
        option for option, name in (("--annotator", person), ("--ratings", rating), ("--item", item)) if not name
    ]
    if missing:
        raise DataError(
            f"{path}: cannot tell which columns hold the ratings; name them with {', '.join(missing)}, or name a "
            f"column for each annotator with --ratings A,B. The columns are {', '.join(known)}"
        )
    time = columns.time or _first(_TIMES, known)
    units: dict[tuple[Any, ...], Unit] = {}
    first_sides: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for _, row in rows:
        sides = tuple(row.get(name) for name in columns.sides)
        key = (*(row.get(name) for name in item), *sorted(map(str, sides)))
        unit = units.setdefault(key, Unit(" ".join(map(str, key))))
        turned = first_sides.setdefault(key, sides) != sides
        who, value = str(row.get(person)), _value(row.get(rating))
        unit.ratings[who] = _turned(value, columns.levels, path) if turned else value
        if time and row.get(time):
            unit.times[who] = str(row[time])
        _fill(unit, row, columns)
    return Question(path.name, "nominal", list(units.values()))


def _first(names: Sequence[str], known: Sequence[str]) -> str:
    lower = {name.lower(): name for name in known}
    return next((lower[name] for name in names if name in lower), "")


def _fill(unit: Unit, row: Mapping[str, Any], columns: Columns) -> None:
    unit.gold = _value(row.get(columns.gold)) if columns.gold else None
    unit.others = {columns.against: _value(row.get(columns.against))} if columns.against else {}
    unit.batch = _cell(row, columns.by)


def _cell(row: Mapping[str, Any], name: str) -> str:
    return "" if not name or row.get(name) in (None, "") else str(row[name])


def _value(cell: Any) -> Any:
    """A rating; None if the cell is empty. Digits are numbers, so that `1`, `1.0` and 1 are equal."""
    if isinstance(cell, list | dict):
        raise DataError(f"a rating must be a number or text, not {cell!r:.80}")
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        return float(cell) if not isinstance(cell, bool) else cell
    except ValueError:
        return cell.strip()


def _turned(value: Any, levels: Sequence[str], path: Path) -> Any:
    """A rating of two sides, if they are swapped."""
    if value is None:
        return None
    places = [_value(level) for level in levels]
    if value not in places:
        raise DataError(
            f"{path}: annotators saw the sides in different orders; name all ratings from one side to the other, "
            f"with --levels. {value!r} is not among them"
        )
    return places[len(places) - 1 - places.index(value)]


def _leveled(question: Question, columns: Columns, path: Path) -> Question:
    """The question with numbers for its ratings, if they have an order: numbers, or by `levels`."""
    used = [value for unit in question.units for value in (*unit.ratings.values(), unit.gold, *unit.others.values())]
    given = {value for value in used if value is not None}
    if not any(value is not None for unit in question.units for value in unit.ratings.values()):
        raise DataError(f"{path}: there are no ratings")
    if columns.levels:
        places = {_value(level): float(number) for number, level in enumerate(columns.levels)}
        unknown = sorted(str(value) for value in given - places.keys())
        if unknown:
            raise DataError(f"{path}: --levels does not name {', '.join(unknown)}")
        for unit in question.units:
            unit.ratings = {who: places.get(value) for who, value in unit.ratings.items()}
            unit.gold = places.get(unit.gold)
            unit.others = {name: places.get(value) for name, value in unit.others.items()}
        question.kind, question.categories = "ordinal", list(places.values())
    elif columns.ordinal:
        words = sorted(str(value) for value in given if not isinstance(value, float))
        if words:
            raise DataError(
                f"{path}: --ordinal needs numbers, not {', '.join(words[:5])}; name their order with --levels"
            )
        question.kind = "ordinal"
    return question
