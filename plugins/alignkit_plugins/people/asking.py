"""What people are asked about rows of data: the items of groups, their gold labels, and the
guidelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Response, resolved_pairs, turns_of
from alignkit.errors import BadRow, DataError, RunFailed
from alignkit.options import Options
from alignkit_plugins.people.database import SUFFIX
from alignkit_plugins.people.effective_labels import places
from alignkit_plugins.people.items import Item, item_of
from alignkit_plugins.people.store import Store

LONGEST_GUIDELINES = 1_000_000  # bytes
# Tasks of which nobody can say anything about equal responses
COMPARED = ("pair", "safety", "ranking", "review")


def items_of(
    groups: Iterable[Group],
    task: str | None = None,
    *,
    license: str = "",
    gold: bool = False,
    left_out: list[str] | None = None,
) -> list[Item]:
    """An item for each group. task: None: by the number of its responses. license: of rows that
    state none.

    Raises `DataError` that lists the rows that nobody could label, or that have no label though
    they should be gold. left_out: gets the reasons instead, one for each such row.
    """
    items, bad = [], []
    for group in groups:
        try:
            item = item_of(group, task)
            item = replace(item, license=item.license or license)
            if gold:
                item = replace(item, gold=gold_of(group, item)).checked()
        except BadRow as error:
            origin = group.origin
            bad.append(
                SkippedRow(origin.file if origin else "", origin.row if origin else 0, str(error))
            )
            continue
        items.append(item)
    if left_out is not None:
        left_out += [row.reason for row in bad]
    elif bad:
        raise bad_rows_error(bad)
    return items


def gold_of(group: Group, item: Item) -> dict[str, Any]:
    """The label that a row states, in the order of its responses. Raises `BadRow` if it states
    none.
    """
    label: dict[str, Any] | None = None
    if item.task in ("pair", "safety"):
        label = _better(group)
    elif item.task in ("ranking", "review") and all(
        response.rank is not None for response in group.responses
    ):
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
    """One group for each prompt, with the responses of all that have it, such as samples of several
    policies.
    """
    found: dict[tuple[str, str], Group] = {}
    for group in groups:
        key = (str(turns_of(group.prompt)), str(group.tools))
        if (first := found.get(key)) is not None:
            group = replace(
                first,
                responses=(*first.responses, *group.responses),
                meta={**group.meta, **first.meta},
            )
        found[key] = group
    return list(found.values())


def questions_of(group: Group, task: str | None) -> list[Group]:
    """The questions about a row, a group each; none if fewer than two of its responses differ.

    Of thumbs: one for each response. Of others: one with all responses. Equal responses are one.
    """
    different: dict[str, Response] = {}
    for response in group.responses:
        text = response.text if response.messages is None else turns_of(response.messages)
        different.setdefault(str(text), response)
    count, answers = len(group.responses), tuple(different.values())
    if task == "thumb":
        return [replace(group, responses=(answer,), pairs=()) for answer in answers]
    if count > 1 and len(answers) < 2 and task in (*COMPARED, None):
        return []
    return [group if len(answers) == count else replace(group, responses=answers, pairs=())]


def with_rewards(group: Group) -> Group:
    """The group with the rewards of its responses as a column, with which labels can be compared
    later.
    """
    rewards = [response.scores.get("reward") for response in group.responses]
    if not rewards or None in rewards or "reward" in group.meta:
        return group
    return replace(group, meta={**group.meta, "reward": rewards})


def guidelines_of(path: Path) -> str:
    """The text of a file of guidelines, in Markdown. Raises `DataError` if it is none, `OSError` if
    it is not there.
    """
    data = path.read_bytes()
    if len(data) > LONGEST_GUIDELINES:
        raise DataError(
            f"the file has {len(data):,} bytes, but nobody reads more than {LONGEST_GUIDELINES:,}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from error


class LabelPlaces(Options):
    """Where a stage's labels are, and what labelers read first."""

    store: Path | None = Field(
        None,
        description=(
            "where labels go, a file that ends in .feedback; default: labels.feedback in the "
            "run's folder"
        ),
    )
    guidelines: Path | None = Field(
        None, description="Markdown for labelers; each label names its version"
    )

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


def shortage(items: Sequence[Item], needed: int | None) -> str:
    """Why a stage cannot get the labels that it needs; empty if it can."""
    if not items:
        return "there is no row to label"
    if needed is not None and needed > len(items):
        return f"labels of {needed} items are wanted, but there are only {len(items)}"
    return ""
