"""Whose labels count: by name, and by gold items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.errors import BadRow, did_you_mean
from alignkit_plugins.people.labels import agrees

FEWEST = 5  # answers to gold items that decide about a person
NAMELESS = "(no name)"  # votes of rows that say nobody's
Rows = Sequence[tuple[int, Any]]
Row = Mapping[str, Any]


def chosen_rows(
    rows: Rows,
    annotators: Sequence[str] | None,
    min_gold: float | None,
    read: Callable[[Row], bool],
) -> tuple[list[tuple[int, Any]], list[str]]:
    """The rows with the votes that count, and who was left out, and why, as `why: person; person`.

    Rows of which no vote is left are left out; rows that cannot be read stay. read: whether the
    recipe reads a row.

    Raises `BadRow` for an unknown name, for `min_gold` without gold items, and if nobody is left.
    """
    used = [row for _, row in rows if is_usable(row) and read(row)]
    people = sorted({_author(vote) for row in used for vote in row["votes"]})
    notes: list[str] = []
    kept = set(people if annotators is None else _named(annotators, people))
    if min_gold is not None:
        kept -= _below(used, sorted(kept), min_gold, notes)
    changed = {id(row): _with_votes(row, kept) for row in used}
    if used and not any(changed.values()):
        raise BadRow(f"no label is left; {'; '.join(notes)}")
    found = [(number, changed.get(id(row), row)) for number, row in rows]
    return [(number, row) for number, row in found if row is not None], notes


def is_usable(row: Any) -> bool:
    """Whether the labels of a row can be compared; the format says what is wrong with others."""
    try:
        task, final = row["item"]["task"], row.get("final")
        for vote in row["votes"]:
            agrees(task, vote["label"], final or vote["label"])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
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
            "'min_gold' needs gold items that these people answered, and there are none; add "
            "some with `alignkit label STORE --gold FILE`, or remove 'min_gold'"
        )
    shares = {name: f"{name} {sum(given)} of {len(given)}" for name, given in answers.items()}
    left_out = {
        name
        for name, given in answers.items()
        if len(given) >= FEWEST and sum(given) / len(given) < least
    }
    if left_out:
        notes.append(
            f"left out, gold below {least:.0%}: "
            f"{'; '.join(shares[name] for name in sorted(left_out))}"
        )
    if open_ones := [name for name, given in answers.items() if len(given) < FEWEST]:
        notes.append(
            f"kept, under {FEWEST} gold items: {'; '.join(shares[name] for name in open_ones)}"
        )
    if len(left_out) == len(people):
        raise BadRow(
            f"'min_gold: {least:g}' leaves nobody; gold items right: {', '.join(shares.values())}"
        )
    return left_out


def _with_votes(row: Row, kept: set[str]) -> Row | None:
    """The row with the votes of these people; None if nothing is left of it."""
    votes = [vote for vote in row["votes"] if _author(vote) in kept]
    return {**row, "votes": votes} if votes or row.get("final") else None
