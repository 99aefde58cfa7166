"""The sources of a recipe's data entry: read, checked, split and mixed into groups.

A source is read as numbered rows (`alignkit.data.files`), and a format plugin turns each row into a group
(`alignkit.formats`). All faults are reported together as `file:row: reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignkit.data.files import (
    SkippedRow,
    bad_rows_error,
    dataset_rows,
    file_rows,
    kind_of,
    raise_if_bad,
    suffix_of,
    text_lines,
)
from alignkit.data.group import Group, group_from_json, group_id, sha256_of, turns_of
from alignkit.errors import BadRow, DataError
from alignkit.formats import Format, text_of
from alignkit.registry import Component


@dataclass(frozen=True)
class DataSource:
    """One source of groups: a file, a stage's data or a hub data set.

    path, stage, hub: exactly one is set.
    format: the format and its options; None detects it from the first row.
    limit: the number of good rows to read; None reads all.
    split: the part of a hub data set, such as `test[:100]`; None means train.
    validation: the share of prompts held out for validation, in [0, 1).
    weight: the source's weight relative to others of the same entry.
    on_bad_row: `error` stops with all bad rows, `skip` counts them.
    columns: the name that the format expects -> the name in the file.
    meta: values added to every group's `meta`; they replace the row's own.
    """

    format: Component | None = None
    path: Path | None = None
    stage: str | None = None
    hub: str | None = None
    limit: int | None = None
    split: str | None = None
    validation: float = 0.0
    weight: float = 1.0
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source in messages: a stage, a path, or a hub data set with its split."""
        if self.stage:
            return f"stage {self.stage}"
        return str(self.path) if self.path is not None else f"{self.hub}[{self.split or 'train'}]"


@dataclass(frozen=True)
class DataSpec:
    """A recipe's data entry: one or more sources, read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class Loaded:
    """The groups of a data entry. skipped: the bad rows of sources with `on_bad_row: skip`."""

    groups: list[Group]
    validation: list[Group] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)


def load(
    spec: DataSpec,
    *,
    formats: Mapping[str, type[Format]],
    seed: int,
    stage_data: Callable[[str], Path],
) -> Loaded:
    """Read all sources of a data entry.

    formats: by name; tried on the first row of a source without a format. seed: of the validation split and of the
    mixing. stage_data: the file that holds a stage's groups.

    The validation split hashes prompts: a prompt is on one side only, in all sources, and adding rows does not move
    the others. If weights differ from 1, sources are repeated or thinned in proportion to their weights, and the
    total number of groups stays the same.

    Raises `DataError` that lists the bad rows of all sources, or names a source without a usable row.
    """
    parts: list[list[Group]] = []
    skipped: list[SkippedRow] = []
    errors: list[SkippedRow] = []
    for source in spec.sources:
        groups, bad = _read_source(source, formats, stage_data)
        (skipped if source.on_bad_row == "skip" else errors).extend(bad)
        if not groups and not errors:
            raise DataError(_no_usable_row(source, bad))
        parts.append(groups)
    if errors:
        raise DataError(f"{bad_rows_error(errors)}\nhelp: correct the rows, or set 'on_bad_row: skip'")
    parts, validation = _split(parts, [source.validation for source in spec.sources], seed)
    return Loaded(_mix(parts, [source.weight for source in spec.sources], seed), validation, skipped)


def _no_usable_row(source: DataSource, bad: Sequence[SkippedRow]) -> str:
    why = f"bad rows skipped: {len(bad)}, the first: {bad[0]}" if bad else "the source is empty"
    return f"{source.name}: no usable row; {why}"


def _read_source(
    source: DataSource, formats: Mapping[str, type[Format]], stage_data: Callable[[str], Path]
) -> tuple[list[Group], list[SkippedRow]]:
    """The good groups of a source, at most its limit, and the bad rows before that limit."""
    if source.split and not source.hub:
        raise DataError(f"{source.name}: only a hub data set has a 'split'; remove it, or name another file")
    reader = _Reader(source, formats)
    groups: list[Group] = []
    bad: list[SkippedRow] = []
    good = 0
    for number, row in reader.rows(stage_data):
        try:
            groups += reader.groups(raise_if_bad(row))
            good += 1
        except BadRow as error:
            bad.append(SkippedRow(source.name, number, str(error)))
        if source.limit is not None and good >= source.limit:
            break
    return groups, bad


class _StoredGroups(Format):
    """Groups that a stage wrote: alignkit made them, so only their shape is checked."""

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        pass


class _Reader:
    """Turns a source's rows into groups; the first row that can be parsed decides the format."""

    def __init__(self, source: DataSource, formats: Mapping[str, type[Format]]):
        self.source = source
        self.formats = formats
        self.format: Format | None = None
        if source.format is not None:
            self.format = source.format.registration.implementation(source.format.options)
        elif source.stage:
            self.format = _StoredGroups()

    def rows(self, stage_data: Callable[[str], Path]) -> Iterator[tuple[int, Any]]:
        """Numbered rows; a row that cannot be parsed is a `BadRow`."""
        source = self.source
        if source.path is None and not source.stage:
            return dataset_rows(str(source.hub), split=source.split or "train")
        path = stage_data(source.stage) if source.stage else Path(str(source.path))
        if suffix_of(path) == ".txt":
            return self._text_rows(path)
        return file_rows(path)

    def _text_rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        if self.format is None:
            candidates = {name: cls for name, cls in self.formats.items() if cls.plain_text}
            if len(candidates) != 1:
                choices = _described(candidates or self.formats)
                raise DataError(f"{path}: a text file needs a format, as in `data: {{FORMAT: FILE}}`:\n{choices}")
            self.format = next(iter(candidates.values()))()
        lines: list[tuple[int, str]] = []
        for number, line in text_lines(path):
            if isinstance(line, BadRow):
                yield number, line
            else:
                lines.append((number, line))
        yield from self.format.rows_of_text(lines)

    def groups(self, row: Any) -> list[Group]:
        """The checked groups of a row, with ids and the source's meta."""
        row = _with_renamed_columns(row, self.source.columns)
        if self.format is None:
            self.format = _detected_format(row, self.formats, self.source.name)
        try:
            self.format.check_columns(row, self.source.columns)
            groups = list(self.format.groups(row))
            for group in groups:
                self.format.check(group)
        except BadRow:
            raise
        except Exception as error:  # if a format fails, the user still learns at which row
            reason = f"the format {type(self.format).__name__} failed: {type(error).__name__}: {error}"
            raise BadRow(reason) from error
        return [self._identified(group) for group in groups]

    def _identified(self, group: Group) -> Group:
        meta = {**group.meta, **self.source.meta}
        return replace(group, id=group.id or group_id(group.prompt, group.responses, group.tools), meta=meta)


def _with_renamed_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with the column names that the format expects. columns: expected -> actual."""
    if not columns:
        return row
    if not isinstance(row, Mapping):
        raise BadRow(f"columns cannot be renamed: the row is {kind_of(row)}, not an object")
    missing = [actual for actual in columns.values() if actual not in row]
    if missing:
        raise BadRow(f"no column {', '.join(map(repr, missing))} to rename; the row has {', '.join(map(str, row))}")
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return others | {expected: row[actual] for expected, actual in columns.items()}


def _detected_format(row: Any, formats: Mapping[str, type[Format]], source: str) -> Format:
    """The only format that matches a source's first row. Raises `DataError` if none or several do."""
    matching = {name: cls for name, cls in formats.items() if _matches(cls, row)}
    if len(matching) == 1:
        return next(iter(matching.values()))()
    content = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else kind_of(row)
    if matching:
        raise DataError(
            f"{source}: several formats match the first row ({content}). "
            f"Choose one, as in `data: {{FORMAT: FILE}}`:\n{_described(matching)}"
        )
    raise DataError(
        f"{source}: no format matches the first row ({content}). "
        f"Name the format, or rename columns with `columns: {{expected: actual}}`:\n{_described(formats)}"
    )


def _matches(format_class: type[Format], row: Any) -> bool:
    try:
        return format_class.matches(row)
    except Exception:  # a plugin that fails on a foreign row does not match it
        return False


def _described(formats: Mapping[str, type[Format]]) -> str:
    width = max((len(name) for name in formats), default=0)
    return "\n".join(f"  {name:<{width}}  {cls.wants or cls.summary}" for name, cls in sorted(formats.items()))


# --- splitting and mixing


def _prompt_key(group: Group) -> str:
    """The same for equal prompts; raw text has no prompt and is identified by its text."""
    turns = [[role, content.strip(), *others] for role, content, *others in turns_of(group.prompt)]
    return sha256_of(turns or [text_of(response) for response in group.responses])


def _fraction(key: str, seed: int, purpose: str) -> float:
    """A number in [0, 1), a hash of the arguments."""
    return int(sha256_of([purpose, seed, key])[:13], 16) / 16**13


def _split(parts: Sequence[list[Group]], shares: Sequence[float], seed: int) -> tuple[list[list[Group]], list[Group]]:
    """Move the validation groups out of the sources. A prompt held out of one source is held out of all."""
    if not any(shares):
        return list(parts), []
    keyed = [[(_prompt_key(group), group) for group in groups] for groups in parts]
    held_out: set[str] = set()
    for groups, share in zip(keyed, shares, strict=True):
        held_out |= _held_out({key for key, _ in groups}, share, seed)
    training = [[group for key, group in groups if key not in held_out] for groups in keyed]
    return training, [group for groups in keyed for key, group in groups if key in held_out]


def _held_out(keys: set[str], share: float, seed: int) -> set[str]:
    """The prompts for validation: about a `share` of them, and at least one on each side."""
    if share <= 0 or len(keys) < 2:
        return set()
    order = sorted((_fraction(key, seed, "validation"), key) for key in keys)
    chosen = [key for fraction, key in order if fraction < share]
    return set(chosen[: len(order) - 1] or [order[0][1]])


def _mix(parts: Sequence[Sequence[Group]], weights: Sequence[float], seed: int) -> list[Group]:
    """The sources in order; if weights differ from 1, each resized in proportion to its weight."""
    if all(weight == 1.0 for weight in weights):
        return [group for groups in parts for group in groups]
    total, total_weight = sum(map(len, parts)), sum(weights)
    mixed: list[Group] = []
    for number, (groups, weight) in enumerate(zip(parts, weights, strict=True)):
        count = round(total * weight / total_weight) if total_weight > 0 else 0
        mixed += _resized(groups, count, seed, f"mix {number}")
    return mixed


def _resized(groups: Sequence[Group], count: int, seed: int, purpose: str) -> list[Group]:
    """`count` groups: whole repetitions of all, then a stable random choice in the original order."""
    if not groups:
        return []
    repetitions, rest = divmod(count, len(groups))
    order = sorted(range(len(groups)), key=lambda i: _fraction(f"{i} {groups[i].id}", seed, purpose))
    return [*groups] * repetitions + [groups[i] for i in sorted(order[:rest])]
