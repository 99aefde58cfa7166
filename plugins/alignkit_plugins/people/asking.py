"""What people are asked about rows of data: the items of groups, their gold labels, and the guidelines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from alignkit import seeds
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Response, resolved_pairs, turns_of
from alignkit.errors import BadRow, DataError, RunFailed
from alignkit.options import Options
from alignkit_plugins.people.database import SUFFIX
from alignkit_plugins.people.effective_labels import places
from alignkit_plugins.people.items import CRITERIA, TASKS, Item, item_of
from alignkit_plugins.people.store import Store

LONGEST_GUIDELINES = 1_000_000  # bytes
COMPARED = ("pair", "safety", "ranking", "review")  # tasks of which nobody can say anything about equal responses


@dataclass(frozen=True)
class Wanted:
    """What is asked about each row. task: None: by the number of its responses. license: of rows that state none."""

    task: str | None = None
    criteria: tuple[str, ...] = CRITERIA
    batch: str = ""
    license: str = ""


def items_of(
    groups: Iterable[Group], wanted: Wanted, folder: Path, *, gold: bool = False, left_out: list[str] | None = None
) -> list[Item]:
    """An item for each group. folder: of the store; files are named from there. gold: the rows' labels are right.

    Raises `DataError` that lists the rows that nobody could label, or that have no label though they should be gold.
    left_out: gets the reasons instead, one for each such row.
    """
    groups = list(groups)
    items, bad, seen = [], [], Counter[tuple[str, int]]()
    for group in groups:
        origin = group.origin
        try:
            item = item_of(group, wanted.task, wanted.criteria, batch=wanted.batch)
            item = replace(item, license=item.license or wanted.license)
            if gold:
                item = replace(item, gold=gold_of(group, item)).checked()
        except BadRow as error:
            bad.append(SkippedRow(origin.file if origin else "", origin.row if origin else 0, str(error)))
            continue
        if origin is not None:
            place = (origin.file, origin.row)
            seen[place] += 1  # a row may be several groups, none of which replaces another
            name = os.path.relpath(origin.file, folder.resolve()) if os.path.isabs(origin.file) else origin.file
            item = replace(item, file=name + f"#{seen[place]}" * (seen[place] > 1))
        items.append(item)
    if left_out is not None:
        left_out += [row.reason for row in bad]
    elif bad:
        raise _refused(bad, groups)
    return items


def _refused(bad: Sequence[SkippedRow], groups: Sequence[Group]) -> DataError:
    error, most = bad_rows_error(bad), max(TASKS["ranking"])
    if all(len(group.responses) <= most for group in groups):
        return error
    pairs = "`step: people` with `task: pair` and `pairs_per_row` asks about pairs of more"
    return DataError(f"{error}\nhelp: keep at most {most} responses in a row; in a recipe, {pairs}")


def gold_of(group: Group, item: Item) -> dict[str, Any]:
    """The label that a row states, in the order of its responses. Raises `BadRow` if it states none."""
    label: dict[str, Any] | None = None
    if item.task in ("pair", "safety"):
        label = _better(group)
    elif item.task in ("ranking", "review") and all(response.rank is not None for response in group.responses):
        label = {"ranks": places([float(response.rank or 0) for response in group.responses])}
    elif item.task == "thumb" and group.responses[0].label is not None:
        label = {"good": group.responses[0].label}
    if label is None:
        raise BadRow(f"the row states no label, so it cannot be the gold label of a {item.task}")
    return label


def _better(group: Group) -> dict[str, Any] | None:
    pairs = resolved_pairs(group)
    if len(pairs) != 1:
        return None
    margin = {"margin": pairs[0].margin} if isinstance(pairs[0].margin, str) else {}
    return {"better": pairs[0].better, **margin}


def joined(groups: Iterable[Group]) -> list[Group]:
    """One group for each prompt, with the responses of all that have it, such as samples of several policies."""
    found: dict[tuple[str, str], Group] = {}
    for group in groups:
        key = (str(turns_of(group.prompt)), str(group.tools))
        if (first := found.get(key)) is not None:
            group = replace(first, responses=(*first.responses, *group.responses), meta={**group.meta, **first.meta})
        found[key] = group
    return list(found.values())


def questions_of(group: Group, task: str | None, pairs: int, seed: int) -> list[Group]:
    """The questions about a row, a group each; none if fewer than two of its responses differ.

    Of a pair or a safety task: up to `pairs` different pairs of its responses, drawn by the seed. Of thumbs: one for
    each response. Of others: one with all responses. Equal responses are one.
    """
    count, different = len(group.responses), dict[str, Response]()
    for response in group.responses:
        text = response.text if response.messages is None else turns_of(response.messages)
        different.setdefault(str(text), response)
    answers = tuple(different.values())
    group = replace(group, responses=answers)
    if task == "thumb":
        return [replace(group, responses=(answer,), pairs=()) for answer in answers]
    compared = task in COMPARED or (task is None and count > 1)
    if compared and count > 1 and len(answers) < 2:
        return []
    if task not in ("pair", "safety") or len(answers) <= 2:
        return [group if len(answers) == count else replace(group, pairs=())]
    both = list(combinations(range(len(answers)), 2))
    order = seeds.stream(seed, "pairs", group.id or str(turns_of(group.prompt))).permutation(len(both))
    chosen = sorted(both[index] for index in order[:pairs])
    return [replace(group, responses=(answers[i], answers[j]), pairs=()) for i, j in chosen]


def with_rewards(group: Group) -> Group:
    """The group with the rewards of its responses as a column, with which labels can be compared later."""
    rewards = [response.scores.get("reward") for response in group.responses]
    if not rewards or None in rewards or "reward" in group.meta:
        return group
    return replace(group, meta={**group.meta, "reward": rewards})


def guidelines_of(path: Path) -> str:
    """The text of a file of guidelines, in Markdown. Raises `DataError` if it is none, `OSError` if it is not there."""
    data = path.read_bytes()
    if len(data) > LONGEST_GUIDELINES:
        raise DataError(f"the file has {len(data):,} bytes, but nobody reads more than {LONGEST_GUIDELINES:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from error


class LabelPlaces(Options):
    """Where a stage's labels are, and what labelers read first."""

    store: Path | None = Field(
        None, description="where labels go, a file that ends in .feedback; default: labels.feedback in the run's folder"
    )
    guidelines: Path | None = Field(None, description="Markdown for labelers; each label names its version")

    @field_validator("store")
    @classmethod
    def _named_as_stores_are(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix != SUFFIX:
            raise ValueError(f"the name of a store must end in {SUFFIX}")
        return path

    def check_files(self) -> None:
        """Raise RunFailed or DataError for files that cannot be used."""
        if self.store is not None and self.store.exists():
            Store.open(self.store, write=False).close()
        if self.guidelines is not None:
            try:
                guidelines_of(self.guidelines)
            except (OSError, DataError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise RunFailed(f"guidelines: {self.guidelines}: {reason}") from error

    def add_guidelines(self, store: Store) -> None:
        """Put the guidelines into the store, where the page finds them."""
        if self.guidelines is not None:
            store.add_guidelines(guidelines_of(self.guidelines))


def shortage(items: Sequence[Item], needed: int | None) -> str:
    """Why a stage cannot get the labels that it needs; empty if it can."""
    if not items:
        return "there is no row to label"
    if needed is not None and needed > len(items):
        return f"labels of {needed} items are wanted, but there are only {len(items)}"
    return ""
