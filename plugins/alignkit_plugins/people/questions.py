"""What labelers were asked, and what each of them answered: from a store, from rows, or from any table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from alignkit.errors import DataError, did_you_mean
from alignkit_plugins.people.effective_labels import Labeled, Vote
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import DEGREES, HIGHEST, LOWEST, degree

Kind = Literal["nominal", "ordinal", "ranking"]
MARGINS = sorted(sign * size for size in DEGREES.values() for sign in (-1, 1))


@dataclass
class Unit:
    """An item, and its rating by each annotator: a value, a number if ordinal, or a list of ranks.

    times: when each annotator rated it, such as `2026-01-05T...`. gold: the right rating. others: those of judges and
    rewards, by name. batch: the round that it belongs to. cluster: units with the same one depend on each other; empty:
    on no other.
    """

    name: str
    ratings: dict[str, Any] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)
    gold: Any = None
    others: dict[str, Any] = field(default_factory=dict)
    batch: str = ""
    cluster: str = ""


@dataclass
class Question:
    """One thing that labelers were asked about many items. categories: all ratings that were possible, if known."""

    name: str
    kind: Kind
    units: list[Unit] = field(default_factory=list)
    categories: Sequence[Any] = ()


@dataclass
class Habit:
    """How an annotator of a store works. left: labels of pairs that prefer the first shown; pairs: all of them.

    longer: those that prefer the longer response, of `uneven` pairs. seconds: on each label. same: repeated items that
    got the same answer again, of `again`. longest_run: the most labels in a row that prefer the same side.
    """

    left: int = 0
    pairs: int = 0
    longer: int = 0
    uneven: int = 0
    same: int = 0
    again: int = 0
    longest_run: int = 0
    seconds: list[float] = field(default_factory=list)


def questions_of(entries: Iterable[Labeled], against: str = "") -> list[Question]:
    """The questions that the items of a store ask, with the opinions that the items hold.

    against: only that opinion, or else a column of the items. It holds the index of the better response, or a list with
    a number for each, of which higher is better. Raises `DataError` if there is no such opinion or column.
    """
    entries = list(entries)
    items = [entry.stored.item for entry in entries]
    known = sorted({name for item in items for name in (*item.opinions, *item.meta)})
    if against and against not in known:
        help = did_you_mean(against, known) or f"the items have {', '.join(known) or 'none'}"
        raise DataError(f"no opinion or column {against!r}; {help}")
    found: dict[str, Question] = {}
    for entry in entries:
        if not entry.stored.retired:
            for name, kind, categories, unit in _units(entry, against):
                found.setdefault(name, Question(name, kind, [], categories)).units.append(unit)
    return [question for question in found.values() if any(unit.ratings for unit in question.units)]


def _others(item: Item, against: str) -> Mapping[str, Any]:
    if not against:
        return item.opinions
    return {against: item.opinions[against] if against in item.opinions else item.meta.get(against)}


def _units(entry: Labeled, against: str) -> list[tuple[str, Kind, Sequence[Any], Unit]]:
    item = entry.stored.item
    others = _others(item, against)
    if item.task in ("pair", "safety"):
        names = _names(item)
        sides = {name: _side(value, name, names) for name, value in others.items()}
        side = _unit(entry, lambda label: names[label["better"]], sides)
        sign = 1 if names == "AB" else -1
        margin = _unit(entry, lambda label: sign * degree(label) if "margin" in label else None)
        found: list[tuple[str, Kind, Sequence[Any], Unit]] = [
            (f"{item.task}: which is better", "nominal", ("A", "B"), side),
            (f"{item.task}: how much better", "ordinal", MARGINS, margin),
        ]
        if item.task == "safety":
            found.append(("safety: which bin", "nominal", (), _unit(entry, lambda label: label.get("safety"))))
        return found
    if item.task in ("ranking", "review"):
        ranks = {name: _ranks(value) for name, value in others.items()}
        return [(item.task, "ranking", (), _unit(entry, lambda label: label["ranks"], ranks))]
    if item.task == "thumb":
        said = {name: value for name, value in others.items() if isinstance(value, bool)}
        return [("thumb", "nominal", (True, False), _unit(entry, lambda label: label["good"], said))]
    found = []
    for place in range(len(item.responses)) if item.task == "scores" else ():
        for name in item.criteria:
            unit = _unit(entry, lambda label, p=place, n=name: label["scores"][p][n])
            unit.name, unit.cluster = f"{unit.name}/{place}", unit.name
            found.append((f"scores: {name}", "ordinal", range(LOWEST, HIGHEST + 1), unit))
    return found


def _names(item: Item) -> str:
    """What the responses of a pair are called, by lot.

    Data often have the better one first. If that one was always A, coefficients beyond chance would take the people's
    agreement for a habit of saying A.
    """
    return "AB" if int(item.id, 16) % 2 == 0 else "BA"


def _unit(entry: Labeled, rating: Any, others: Mapping[str, Any] | None = None) -> Unit:
    gold = entry.gold
    return Unit(
        entry.stored.item.id,
        {vote.annotator: rating(vote.label) for vote in entry.votes},
        {vote.annotator: vote.created for vote in entry.votes},
        None if gold is None else rating(gold),
        dict(others or {}),
        entry.stored.item.batch,
    )


def _side(other: Any, column: str, names: str) -> str | None:
    """The better response of a pair by a column; None if it does not say. Raises `DataError` for anything else."""
    if (
        isinstance(other, list | tuple)
        and len(other) == 2
        and all(v is None or isinstance(v, int | float) for v in other)
    ):
        return None if None in other or other[0] == other[1] else names[other[1] > other[0]]
    if other in (0, 1, None):
        return None if other is None else names[int(other)]
    raise DataError(
        f"column {column!r} must hold 0 or 1, the index of the better response, or a number for each of the two, "
        f"not {other!r:.80}"
    )


def _ranks(other: Any) -> Any:
    """Ranks from numbers of which higher is better; None if one is missing."""
    return [-value for value in other] if isinstance(other, list | tuple) and None not in other else None


def habits_of(entries: Iterable[Labeled]) -> dict[str, Habit]:
    """How each annotator of a store works."""
    found: dict[str, Habit] = {}
    sides: dict[str, list[tuple[str, bool]]] = {}
    for entry in entries:
        again = {vote.annotator: vote for vote in entry.again}
        for vote in entry.votes:
            habit = found.setdefault(vote.annotator, Habit())
            habit.seconds += [] if vote.seconds is None else [vote.seconds]
            if vote.annotator in again:
                habit.again += 1
                habit.same += _same(vote, again[vote.annotator])
            if "better" in vote.label:
                first = vote.order[0] == vote.label["better"]
                sides.setdefault(vote.annotator, []).append((vote.created, first))
                _count_pair(habit, entry, vote.label, first)
    for name, given in sides.items():
        runs = groupby(first for _, first in sorted(given))
        found[name].longest_run = max(len(list(run)) for _, run in runs)
    return found


def _count_pair(habit: Habit, entry: Labeled, label: Mapping[str, Any], first: bool) -> None:
    lengths = [len(str(answer)) for answer in entry.stored.item.responses]
    habit.pairs += 1
    habit.left += first
    if lengths[0] != lengths[1]:
        habit.uneven += 1
        habit.longer += lengths[label["better"]] == max(lengths)


def _same(vote: Vote, other: Vote) -> bool:
    """Whether an annotator gave the same answer twice: of a pair, the better response; of a review, the ranks."""
    key = next((key for key in ("better", "ranks", "scores", "good") if key in vote.label), "")
    return not key or bool(vote.label[key] == other.label.get(key))
