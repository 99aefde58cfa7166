"""The sources of a recipe's data entry: read, checked, and split into rows to learn from and rows held out.

A source is read as numbered rows (`alignkit.data.files`, `alignkit.data.hub`), and a format plugin turns each row into
a group (`alignkit.data.reading`, `alignkit.formats`). All faults are reported together as `file:row: reason`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from alignkit.data import hub
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, resolved_pairs, sha256_of, turns_of
from alignkit.data.reading import DataSource, Formats, Sample, SourceRows, StageData, read_source
from alignkit.errors import DataError, did_you_mean
from alignkit.formats import text_of
from alignkit.readers import reader_of

OR_SKIP = ", or set 'on_bad_row: skip'"


@dataclass(frozen=True)
class DataSpec:
    """A recipe's data entry: one or more sources, read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class SourceFacts:
    """How a source was read.

    format: the name of the format. recognized: whether the first row decided it, and not the recipe.
    rows: good rows to read now. held_out: good rows on the other side of the split. skipped: bad rows.
    weight: its share of the rows drawn, between 0 and 1; None if every row counts the same.
    ties: rows to read now with several responses, none of which is better. sample: one of these rows as it was
    understood. part: the side of the split that is read; None: both, and the held-out rows for validation. notes: what
    the format decided about all rows, in words.
    """

    name: str
    format: str
    recognized: bool
    rows: int
    held_out: int = 0
    skipped: int = 0
    weight: float | None = None
    ties: int = 0
    sample: Sample | None = None
    part: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Loaded:
    """The groups of a data entry, in the order of its sources.

    validation: held out from training. skipped: the bad rows of sources with `on_bad_row: skip`. sources: in order;
    a group's `origin.source` is the place of its own.
    """

    groups: list[Group]
    validation: list[Group] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    sources: tuple[SourceFacts, ...] = ()

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The share of each source among the rows drawn; None if every row counts the same."""
        shares = tuple(source.weight for source in self.sources if source.weight is not None)
        return shares or None


def load(
    spec: DataSpec,
    *,
    formats: Formats,
    seed: int,
    stage_data: StageData,
    commit: hub.CommitOf = hub.as_written,
) -> Loaded:
    """Read all sources of a data entry.

    formats: by name; tried on the first row of a source without a format. seed: of the validation split.
    stage_data: the file that holds a stage's groups. commit: the commit of a hub data set.

    The validation split hashes prompts, or the column that `group` names: each is on one side only, in all sources, and
    so are the turns of a conversation. Adding rows does not move the others.

    Raises `DataError` that lists the bad rows of all sources, or names a source without a usable row, or one of which
    nothing can be held out.
    """
    parts: list[SourceRows] = []
    skipped: list[SkippedRow] = []
    errors: list[SkippedRow] = []
    for place, source in enumerate(spec.sources):
        part = read_source(source, place, formats, stage_data, commit)
        for row in part.bad:
            (skipped if row.left_out or source.on_bad_row == "skip" else errors).append(row)
        if not part.groups and not errors:
            raise DataError(_no_usable_row(source, part.bad))
        parts.append(part)
    if errors:
        raise DataError(f"{bad_rows_error(errors)}\nhelp: correct the rows{OR_SKIP}")
    training, held_out = _split([part.groups for part in parts], spec.sources, seed)
    # The same in all sources that have a split, or else the recipe was refused. None: both sides.
    wanted = next((source.part for source in spec.sources if source.validation), None)
    kept, other = (held_out, training) if wanted == "validation" else (training, held_out)
    facts = tuple(
        SourceFacts(
            source.name,
            part.format,
            part.recognized,
            len(mine),
            len(theirs),
            len(part.bad),
            share,
            sum(map(tied, mine)),
            part.sample(mine),
            wanted,
            part.notes,
        )
        for source, part, mine, theirs, share in zip(spec.sources, parts, kept, other, shares_of(spec), strict=True)
    )
    validation = [] if wanted else [group for groups in held_out for group in groups]
    return Loaded([group for groups in kept for group in groups], validation, skipped, facts)


def tied(group: Group) -> bool:
    """Whether none of several responses is better. Those with labels or different scores were rated, not compared."""
    rated = {tuple(response.scores.items()) for response in group.responses}
    several = len(group.responses) > 1 and all(response.label is None for response in group.responses)
    return several and len(rated) < 2 and not resolved_pairs(group)


def shares_of(spec: DataSpec) -> list[float | None]:
    """Each source's share of the rows drawn; None for all if no weight of several sources is set."""
    weights = [source.weight for source in spec.sources]
    if len(weights) < 2 or all(weight is None for weight in weights):
        return [None] * len(weights)
    filled = [1.0 if weight is None else weight for weight in weights]
    return [weight / sum(filled) for weight in filled]


def _no_usable_row(source: DataSource, bad: Sequence[SkippedRow]) -> str:
    why = f"bad rows skipped: {len(bad)}, the first: {bad[0]}" if bad else "the source is empty"
    if not bad and source.path is not None and (reader := reader_of(source.path)) is not None:
        why = reader.no_rows
    return f"{source.name}: no usable row; {why}"


# --- splitting


def prompt_key(group: Group) -> str:
    """The same for equal prompts; raw text has no prompt and is identified by its text."""
    turns = [[role, content.strip(), *others] for role, content, *others in turns_of(group.prompt)]
    return sha256_of(turns or [text_of(response) for response in group.responses])


def _fraction(key: str, seed: int) -> float:
    """A number in [0, 1), a hash of the arguments."""
    return int(sha256_of(["validation", seed, key])[:13], 16) / 16**13


def _unit(group: Group, column: str | None) -> str:
    """What must not be cut: the prompt, or what the row has in the column of its source's `group`."""
    if column is None:
        return prompt_key(group)
    return sha256_of(["group", column, held_together(group, column)])


def held_together(group: Group, column: str) -> Any:
    """What a row has in the column of its source's `group`. Raises DataError if it has nothing there."""
    if group.meta.get(column) is None:
        near = did_you_mean(column, [name for name in group.meta if name != column])
        help = f"\nhelp: {near}" if near else ""
        raise DataError(f"{group.origin}: the row has no '{column}', by which 'group' holds rows together{help}")
    return group.meta[column]


def _loosely(group: Group) -> str:
    """The same for prompts that differ in case and white space only: an answer to one tells that to the other."""
    if not group.prompt:
        return prompt_key(group)
    turns = [[role, " ".join(content.casefold().split()), *others] for role, content, *others in turns_of(group.prompt)]
    return sha256_of(["loosely", turns])


def sides(parts: Sequence[list[Group]], columns: Sequence[str | None]) -> list[list[str]]:
    """The key of each group: groups with the same key are on one side.

    A key is that of the prompt, or of the source's column. Keys are joined if groups share a prompt, come from one row,
    or continue each other: a prompt is then the beginning of another one. The key of all is the smallest, whatever the
    order of the rows.
    """
    keys = [[_unit(group, column) for group in groups] for groups, column in zip(parts, columns, strict=True)]
    joined: dict[str, str] = {}

    def find(key: str) -> str:
        while (above := joined.get(key, key)) != key:
            key = above
        return key

    def join(one: str, other: str) -> None:
        smaller, larger = sorted((find(one), find(other)))
        joined[larger] = smaller

    first: dict[str, str] = {}  # the key of the first group with a prompt, or of a row
    every = list(zip(chain(*keys), chain(*parts), strict=True))
    for key, group in every:
        row = "" if group.origin is None else f"{group.origin.source}:{group.origin.row}"
        for shared in (_loosely(group), *([row] if row else [])):
            join(key, first.setdefault(shared, key))
    for key, group in every:
        for end in range(1, len(group.prompt) - 1):
            earlier = first.get(_loosely(replace(group, prompt=group.prompt[:end])))
            if earlier is not None:
                join(key, earlier)
    return [[find(key) for key in own] for own in keys]


def _split(
    parts: Sequence[list[Group]], sources: Sequence[DataSource], seed: int
) -> tuple[list[list[Group]], list[list[Group]]]:
    """Each source's groups on either side. A prompt held out of one source is held out of all."""
    if not any(source.validation for source in sources):
        return list(parts), [[] for _ in parts]
    keys_of = sides(parts, [source.group for source in sources])
    keyed = [list(zip(keys, groups, strict=True)) for keys, groups in zip(keys_of, parts, strict=True)]
    held_out: set[str] = set()
    for source, keys in zip(sources, keys_of, strict=True):
        if source.validation and len(set(keys)) < 2:
            what = f"'{source.group}'" if source.group else "prompt, or belong to one conversation"
            raise DataError(
                f"{source.name}: 'validation: {source.validation:g}' holds out nothing: all {len(keys)} rows have the "
                f"same {what}\nhelp: leave 'validation' out, or name other data for it"
            )
        held_out |= _held_out(set(keys), source.validation, seed)
    training = [[group for key, group in groups if key not in held_out] for groups in keyed]
    return training, [[group for key, group in groups if key in held_out] for groups in keyed]


def _held_out(keys: set[str], share: float, seed: int) -> set[str]:
    """The keys for validation: about a `share` of them, and at least one on each side."""
    if share <= 0:
        return set()
    order = sorted((_fraction(key, seed), key) for key in keys)
    chosen = [key for fraction, key in order if fraction < share]
    return set(chosen[: len(order) - 1] or [order[0][1]])
