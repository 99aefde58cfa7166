"""DataSpec -> groups: the sources of a recipe's data entry are read, split and mixed.

A source is cut into rows (`alignkit.data.files`), and every row goes through a format plugin's `read` and `check`
(`alignkit.formats`). Every fault is reported as `file:row: reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignkit.data.files import (
    SkippedRow,
    bad_rows,
    dataset_rows,
    file_rows,
    kind_of,
    raised,
    suffix_of,
    text_lines,
)
from alignkit.data.group import Group, group_from_json, group_id, sha256_of, turns_of
from alignkit.errors import BadRow, DataError
from alignkit.formats import Format, said
from alignkit.registry import Component


@dataclass(frozen=True)
class DataSource:
    """One source of groups: exactly one of `path`, `stage` and `hub` is set. `format` None: detected."""

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


@dataclass(frozen=True)
class DataSpec:
    """Sources that are read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class Loaded:
    """What `load` found. skipped: the bad rows of sources that say `on_bad_row: skip`."""

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
    """Reads all sources of a data entry.

    formats: name -> format, tried on the first row of a source that names none. seed: of the validation split and
    of the mixing. stage_data: the file that a stage left its groups in.

    All bad rows of all sources are in one error. The validation share is cut by a hash of the prompt, so a prompt is
    on one side only, whatever source it is in, and adding rows moves no other row. Where weights differ from 1,
    sources are repeated or thinned out so that they stand in the proportion of their weights and the total is kept.
    """
    parts: list[list[Group]] = []
    skipped: list[SkippedRow] = []
    fatal: list[SkippedRow] = []
    for source in spec.sources:
        groups, bad = _read_source(source, formats, stage_data)
        (skipped if source.on_bad_row == "skip" else fatal).extend(bad)
        if not groups and not fatal:
            raise DataError(_nothing(_name(source), bad))
        parts.append(groups)
    if fatal:
        raise bad_rows(fatal)
    parts, validation = _split(parts, [source.validation or 0.0 for source in spec.sources], seed)
    weights = [1.0 if source.weight is None else source.weight for source in spec.sources]
    return Loaded(_mix(parts, weights, seed), validation, skipped)


def _nothing(name: str, bad: Sequence[SkippedRow]) -> str:
    return f"{name}: no usable row" + (f"; all {len(bad)} were skipped, the first: {bad[0]}" if bad else "")


def _name(source: DataSource) -> str:
    if source.stage:
        return f"stage {source.stage}"
    return str(source.path) if source.path is not None else f"{source.hub}[{source.split or 'train'}]"


def _read_source(
    source: DataSource, formats: Mapping[str, type[Format]], stage_data: Callable[[str], Path]
) -> tuple[list[Group], list[SkippedRow]]:
    """All good groups of a source (at most its limit) and all bad rows up to there."""
    reader = _Reader(source, formats)
    groups: list[Group] = []
    bad: list[SkippedRow] = []
    name = _name(source)
    if source.split and not source.hub:
        raise DataError(f"{name}: 'split' names a part of a hub data set; this one has none (name another file)")
    for number, row in reader.rows(stage_data):
        try:
            groups.append(reader.group(raised(row)))
        except BadRow as error:
            bad.append(SkippedRow(name, number, str(error)))
        if source.limit is not None and len(groups) >= source.limit:
            break
    return groups, bad


class _StoredGroups(Format):
    """What a stage left: written by alignkit, so nothing is required of it beyond its shape."""

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        pass


class _Reader:
    """Turns a source's rows into groups; chooses the format by the first row that can be parsed."""

    def __init__(self, source: DataSource, formats: Mapping[str, type[Format]]):
        self.source = source
        self.formats = formats
        self.format: Format | None = None
        if source.format is not None:
            self.format = source.format.registration.implementation(source.format.options)
        elif source.stage:
            self.format = _StoredGroups()

    def rows(self, stage_data: Callable[[str], Path]) -> Iterator[tuple[int, Any]]:
        """Numbered rows; a `BadRow` stands in the place of one that cannot be parsed."""
        source = self.source
        if source.path is None and not source.stage:
            return dataset_rows(str(source.hub), split=source.split or "train")
        path = stage_data(source.stage) if source.stage else Path(str(source.path))
        if suffix_of(path) == ".txt":
            return self._text_rows(path)
        return file_rows(path)

    def _text_rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        if self.format is None:
            plain = {name: cls for name, cls in self.formats.items() if cls.plain_text}
            if len(plain) != 1:
                raise DataError(f"{path}: name the format of a plain text file; {_told(plain or self.formats)}")
            self.format = next(iter(plain.values()))()
        lines: list[tuple[int, str]] = []
        for number, line in text_lines(path):
            if isinstance(line, BadRow):
                yield number, line
            else:
                lines.append((number, line))
        yield from self.format.rows_of_text(lines)

    def group(self, row: Any) -> Group:
        """The checked group of a row, with an id and the source's meta."""
        row = _renamed(row, self.source.columns or {})
        if self.format is None:
            self.format = _detected(row, self.formats, _name(self.source))
        try:
            group = self.format.read(row)
            self.format.check(group)
        except BadRow:
            raise
        except Exception as error:  # a format that did not foresee a row must not hide which row it was
            reason = f"{type(self.format).__name__} failed: {type(error).__name__}: {error}"
            raise BadRow(reason) from error
        meta = {**group.meta, **(self.source.meta or {})}
        return replace(group, id=group.id or group_id(group.prompt, group.responses), meta=meta)


def _renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with its columns under the names that the format expects. columns: expected -> actual."""
    if not columns:
        return row
    if not isinstance(row, Mapping):
        raise BadRow(f"columns cannot be renamed: the row is {kind_of(row)}, not an object")
    missing = [actual for actual in columns.values() if actual not in row]
    if missing:
        raise BadRow(f"no column {', '.join(map(repr, missing))}; the row has {', '.join(map(str, row))}")
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {expected: row[actual] for expected, actual in columns.items()}


def _detected(row: Any, formats: Mapping[str, type[Format]], name: str) -> Format:
    matching = {known: cls for known, cls in formats.items() if _fits(cls, row)}
    if len(matching) == 1:
        return next(iter(matching.values()))()
    has = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"{kind_of(row)}"
    if matching:
        raise DataError(f"{name}: several formats fit its first row ({has}), name one:\n{_told(matching)}")
    raise DataError(
        f"{name}: no format fits its first row ({has}). "
        f"Name the format, or rename columns with `columns: {{expected: actual}}`:\n{_told(formats)}"
    )


def _fits(format_class: type[Format], row: Any) -> bool:
    try:
        return format_class.matches(row)
    except Exception:  # a plugin that trips over a foreign row does not want it
        return False


def _told(formats: Mapping[str, type[Format]]) -> str:
    width = max((len(name) for name in formats), default=0)
    return "\n".join(f"  {name:<{width}}  {cls.wants or cls.summary}" for name, cls in sorted(formats.items()))


# Splitting and mixing


def _prompt_key(group: Group) -> str:
    """Equal for equal prompts; raw text has no prompt and is its own."""
    turns = [[role, content.strip()] for role, content in turns_of(group.prompt)]
    return sha256_of(turns or [said(response) for response in group.responses])


def _place(key: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    return int(sha256_of([purpose, seed, key])[:13], 16) / 16**13


def _split(parts: Sequence[list[Group]], shares: Sequence[float], seed: int) -> tuple[list[list[Group]], list[Group]]:
    """Takes the validation groups out of the sources. A prompt that one source holds out is held out of all."""
    if not any(shares):
        return list(parts), []
    keyed = [[(_prompt_key(group), group) for group in groups] for groups in parts]
    held: set[str] = set()
    for groups, share in zip(keyed, shares, strict=True):
        held |= _held_out({key for key, _ in groups}, share, seed)
    training = [[group for key, group in groups if key not in held] for groups in keyed]
    return training, [group for groups in keyed for key, group in groups if key in held]


def _held_out(keys: set[str], share: float, seed: int) -> set[str]:
    """The prompts that go to validation: about a `share` of them, and at least one on each side."""
    if share <= 0 or len(keys) < 2:
        return set()
    order = sorted((_place(key, seed, "validation"), key) for key in keys)
    chosen = [key for place, key in order if place < share]
    return set(chosen[: len(order) - 1] or [order[0][1]])


def _mix(parts: Sequence[Sequence[Group]], weights: Sequence[float], seed: int) -> list[Group]:
    """The sources one after the other, in the proportion of their weights where these differ from 1."""
    if all(weight == 1.0 for weight in weights):
        return [group for groups in parts for group in groups]
    total, whole = sum(map(len, parts)), sum(weights)
    mixed: list[Group] = []
    for number, (groups, weight) in enumerate(zip(parts, weights, strict=True)):
        count = round(total * weight / whole) if whole > 0 else 0
        mixed += _resized(groups, count, seed, f"mix {number}")
    return mixed


def _resized(groups: Sequence[Group], count: int, seed: int, purpose: str) -> list[Group]:
    """`count` groups: all of them as often as that takes whole, then a stable choice of them, in their order."""
    if not groups:
        return []
    times, more = divmod(count, len(groups))
    order = sorted(range(len(groups)), key=lambda i: _place(f"{i} {groups[i].id}", seed, purpose))
    return [*groups] * times + [groups[i] for i in sorted(order[:more])]
