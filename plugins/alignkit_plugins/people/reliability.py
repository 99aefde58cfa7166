"""Whose labels count, and how much: by gold items, and by the estimator of Dawid and Skene (1979).

Of two responses, which one comes first in an item means nothing: often it is the better one of the file. So each
comparison is also read mirrored, and the estimated errors are the same for both sides: one accuracy per person.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from alignkit.errors import BadRow, did_you_mean
from alignkit_plugins.people.labels import agrees

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = Sequence[int] | NDArray[np.int64]

FEWEST = 5  # answers to gold items that decide about a person
ROUNDS, CONVERGED = 2000, 1e-9  # of the estimation; the largest change of a probability
TINY = 1e-300  # in place of a probability of 0, whose logarithm is no number
NAMELESS = "(no name)"  # votes of rows that say nobody's
Rows = Sequence[tuple[int, Any]]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Whose:
    """Whose labels are read: `annotators`, `min_gold` and `weights` of the format `feedback`."""

    annotators: Sequence[str] | None = None
    min_gold: float | None = None
    weights: str | None = None


def chosen_rows(rows: Rows, whose: Whose, read: Callable[[Row], bool]) -> tuple[list[tuple[int, Any]], list[str]]:
    """The rows with the votes that count, and who was left out or weighed, and why, as `why: person; person`.

    With `weights`, each vote has its `weight`: the log-odds that its author is right, from 0 for one who guesses. Rows
    of which no vote is left are left out; rows that cannot be read stay. read: whether the recipe reads a row.

    Raises `BadRow` for an unknown name, for `min_gold` without gold items, for weights that cannot be estimated, and if
    nobody is left.
    """
    used = [row for _, row in rows if _is_usable(row) and read(row)]
    people = sorted({_author(vote) for row in used for vote in row["votes"]})
    notes: list[str] = []
    kept = set(people if whose.annotators is None else _named(whose.annotators, people))
    if whose.min_gold is not None:
        kept -= _below(used, sorted(kept), whose.min_gold, notes)
    weights = _weights(used, sorted(kept), notes) if whose.weights is not None else None
    changed = {id(row): _with_votes(row, kept, weights) for row in used}
    if used and not any(changed.values()):
        raise BadRow(f"no label is left; {'; '.join(notes)}")
    found = [(number, changed.get(id(row), row)) for number, row in rows]
    return [(number, row) for number, row in found if row is not None], notes


def dawid_skene(
    people: Indices, items: Indices, said: Indices, classes: int, known: Mapping[int, int], smoothing: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Maximum likelihood estimates of observer error rates by EM (Dawid and Skene 1979, section 3).

    people, items, said: of each answer, counted from 0: [answers]. A person may answer an item several times.
    known: the true class of some items. smoothing: answers that each error rate has before the first one.

    Returns the classes' shares [classes], error rates [people, class said, true class], and the probabilities of the
    true classes [items, classes].
    """
    import numpy as np

    who, what, heard = (np.asarray(column, dtype=np.int64) for column in (people, items, said))
    truths = np.zeros((what.max() + 1, classes))
    np.add.at(truths, (what, heard), 1.0)  # at first, what most say (equation 3.1)
    truths /= truths.sum(axis=1, keepdims=True)
    fixed = np.fromiter(known, dtype=np.int64, count=len(known))
    right = np.eye(classes)[[known[item] for item in known]]
    truths[fixed] = right
    for _ in range(ROUNDS):
        shares = truths.mean(axis=0)
        errors = np.full((who.max() + 1, classes, classes), smoothing)
        np.add.at(errors, (who, heard), truths[what])
        errors /= np.maximum(errors.sum(axis=1, keepdims=True), TINY)
        logs = np.tile(np.log(np.maximum(shares, TINY)), (len(truths), 1))
        np.add.at(logs, what, np.log(np.maximum(errors, TINY))[who, heard])
        before, truths = truths, np.exp(logs - logs.max(axis=1, keepdims=True))
        truths /= truths.sum(axis=1, keepdims=True)
        truths[fixed] = right
        if np.abs(truths - before).max() < CONVERGED:
            break
    return shares, errors, truths


def _is_usable(row: Any) -> bool:
    """Whether the labels of a row can be compared; the format says what is wrong with others."""
    try:
        task, final = row["item"]["task"], row.get("final")
        for label in [*(vote["label"] for vote in row["votes"]), *([final] if final else [])]:
            list(_sides(task, label))
            agrees(task, label, final or label)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ZeroDivisionError):
        return False
    return True


def _author(vote: Mapping[str, Any]) -> str:
    return str(vote.get("annotator") or NAMELESS)


def _named(names: Sequence[str], people: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in people:
            hint = did_you_mean(name, people) or f"annotators: {', '.join(people) or 'none'}"
            raise BadRow(f"'annotators': nobody called '{name}' labeled anything here; {hint}")
    return names


def _below(rows: Sequence[Row], people: Sequence[str], least: float, notes: list[str]) -> set[str]:
    """Who answers gold items worse than asked."""
    answers: dict[str, list[bool]] = {name: [] for name in people}
    for row in rows:
        for vote in row["votes"] if row.get("gold") and row.get("final") else ():
            right = agrees(row["item"]["task"], vote["label"], row["final"])
            if right is not None and _author(vote) in answers:
                answers[_author(vote)].append(right)
    if not any(answers.values()):
        raise BadRow(
            "'min_gold' needs gold items that these people answered, and there are none; add some with `alignkit label "
            "STORE --gold FILE`, or remove 'min_gold'"
        )
    shares = {name: f"{name} {sum(given)} of {len(given)}" for name, given in answers.items()}
    left_out = {name for name, given in answers.items() if len(given) >= FEWEST and sum(given) / len(given) < least}
    if left_out:
        notes.append(f"left out, gold below {least:.0%}: {'; '.join(shares[name] for name in sorted(left_out))}")
    if open_ones := [name for name, given in answers.items() if len(given) < FEWEST]:
        notes.append(f"kept, under {FEWEST} gold items: {'; '.join(shares[name] for name in open_ones)}")
    if len(left_out) == len(people):
        raise BadRow(f"'min_gold: {least:g}' leaves nobody; gold items right: {', '.join(shares.values())}")
    return left_out


def _with_votes(row: Row, kept: set[str], weights: Mapping[str, float] | None) -> Row | None:
    """The row with the votes of these people; None if nothing is left of it."""
    votes = [dict(vote) for vote in row["votes"] if _author(vote) in kept]
    if weights is not None:
        votes = [vote | {"weight": weights[_author(vote)]} for vote in votes]
        # There is nothing to weigh in a demonstration, and 0 is for people who guess.
        votes = [vote for vote in votes if vote["weight"] > 0 or row["item"]["task"] == "demonstration"]
    return {**row, "votes": votes} if votes or row.get("final") else None


# Weights


def _weights(rows: Sequence[Row], people: Sequence[str], notes: list[str]) -> dict[str, float]:
    """The log-odds that each person is right, at least 0."""
    right = _accuracies(rows, people)
    if not right:
        raise BadRow(
            "'weights: dawid_skene' needs items that two people labeled, or gold items, to tell who is right; label "
            "with `--overlap 2`, or remove 'weights'"
        )
    usual = sum(right.values()) / len(right)
    alone = [name for name in people if name not in right]
    right |= dict.fromkeys(alone, usual)
    said = [f"{name} {100 * right[name]:.1f}%{', counts nothing' * (right[name] <= 0.5)}" for name in people]
    notes.append(f"weighed by Dawid and Skene, right in: {'; '.join(said)}")
    if alone:
        notes.append(f"weighed like the mean, no shared item: {'; '.join(alone)}")
    return {name: max(0.0, math.log(share / (1 - share))) for name, share in right.items()}


def _accuracies(rows: Sequence[Row], people: Sequence[str]) -> dict[str, float]:
    """How often each person is right, by the comparisons that others made, too, or whose truth is settled."""
    who: list[int] = []
    units: list[int] = []
    said: list[int] = []
    known: dict[int, int] = {}
    place = {name: index for index, name in enumerate(people)}
    for row in rows:
        task, given = row["item"]["task"], defaultdict[Any, list[tuple[int, int]]](list)
        settled = dict(_sides(task, row["final"])) if row.get("final") else {}
        for vote in row["votes"]:
            for unit, side in _sides(task, vote["label"]) if _author(vote) in place else ():
                given[unit].append((place[_author(vote)], side))
        for unit, sides in given.items():
            if len(sides) < 2 and unit not in settled:
                continue  # one answer says nothing about its author
            for mirrored in (0, 1):
                number = (units[-1] + 1) if units else 0
                if unit in settled:
                    known[number] = settled[unit] ^ mirrored
                for person, side in sides:
                    who.append(person)
                    units.append(number)
                    said.append(side ^ mirrored)
    if not who:
        return {}
    # One right and one wrong answer more: of a person with two labels, little is known.
    errors = dawid_skene(who, units, said, 2, known, smoothing=1.0)[1]
    # Rounded, so that the last bits of a machine's logarithms change nothing.
    return {people[person]: round(float(errors[person, 0, 0]), 6) for person in sorted(set(who))}


def _sides(task: str, label: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """What a label says of each two responses, by their places: 0, the first is better, or 1. Ties say nothing."""
    if "better" in label:
        yield 0, int(label["better"])
    elif "good" in label:
        yield 0, int(label["good"])
    elif task != "demonstration":
        means = [-sum(rated.values()) / len(rated) for rated in label["scores"]] if "ranks" not in label else None
        ranks = label["ranks"] if means is None else means
        for i, j in combinations(range(len(ranks)), 2):
            if ranks[i] != ranks[j]:
                yield (i, j), int(ranks[i] > ranks[j])
