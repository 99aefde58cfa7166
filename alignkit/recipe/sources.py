"""The sources of a recipe's data entry: read, checked, and split into rows to learn from and rows
held out.

A source is read as numbered rows (`alignkit.data.files`), and a format plugin turns each row into a
group (`alignkit.contract.formats`). All faults are reported together as `file:row: reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, PrivateAttr

from alignkit.contract.formats import (
    Format,
    Formats,
    checked_groups,
    matches,
    with_renamed_columns,
)
from alignkit.contract.options import Field, Options, in_recipe
from alignkit.data.files import (
    NumberedRows,
    SkippedRow,
    bad_rows_error,
    json_rows,
    jsonl_rows,
    kind_of,
    left_out,
    raise_if_bad,
    skips,
    suffix_of,
    text_lines,
    without_fills,
)
from alignkit.data.group import (
    Group,
    Origin,
    check_weights,
    group_id,
    resolved_pairs,
)
from alignkit.errors import BadRow, DataError, LeftOut, reason_of
from alignkit.evaluation import split
from alignkit.host.calls import line_in
from alignkit.host.plugins import plugins, reader_of, registration_of
from alignkit.host.registry import Component
from alignkit.io.digest import file_digest, folder_digest

OR_SKIP = ", or set 'on_bad_row: skip'"
StageData = Callable[[str], Path]
# Data set, revision -> commit, or None if it is unknown
CommitOf = Callable[[str, str | None], str | None]
Keys = Mapping[str, str]  # what decides a split, by the opening of a conversation


class DataSource(Options):
    """One source of groups, and the keys of every data source of a recipe."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    path: Path | None = Field(None, "file; set exactly one of path, hub and stage")
    hub: Annotated[str | None, in_recipe("hub")] = Field(
        None, "data set on the Hugging Face Hub, or a folder of data files such as ./folder"
    )
    config: str | None = Field(
        None, "configuration (subset) of a Hub data set, such as main", alias="name"
    )
    revision: str | None = Field(
        None, "commit, branch or tag of a Hub data set; default: its main branch"
    )
    data_files: str | list[str] | None = Field(
        None, "files or patterns inside a Hub data set to download and read, such as FOLDER/train*"
    )
    stage: Annotated[str | None, in_recipe("data_stage")] = Field(
        None, "step that produces the data"
    )
    limit: int | None = Field(None, "use only the first N good rows; default: all", ge=1)
    split: str | None = Field(None, "split of a Hub data set; default: train")
    validation: float = Field(
        0.0, "share that is held out for validation, as `part: [0, SHARE]` reads it", ge=0, lt=1
    )
    part: tuple[float, float] | None = Field(
        None, "share of the conversations by their first message, such as [0.2, 0.6]"
    )
    group: str | None = Field(
        None,
        "column of what rows share, such as a passage; equal values are on one side of the split",
    )
    weight: float | None = Field(
        None,
        (
            "share of the rows drawn from this source, relative to the others; default: 1 if "
            "another source has a weight, else every row is drawn once per epoch"
        ),
        gt=0,
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", "error: stop and list the bad rows; skip: count them and continue"
    )
    columns: dict[str, str] = Field(
        {}, "column names as {the name the format expects: the name in the file}"
    )
    meta: dict[str, Any] = Field({}, "values to add to every row, such as {safety: true}")
    _format: Component | None = PrivateAttr(None)

    def check_values(self) -> None:
        origins = [name for name in ("path", "hub", "stage") if getattr(self, name) is not None]
        if len(origins) != 1:
            written = " and ".join(f"'{name}'" for name in origins) or "none of them"
            raise ValueError(f"expected exactly one of 'path', 'hub' and 'stage', got {written}")
        hub_only = [
            key for key in ("config", "revision", "data_files", "split") if getattr(self, key)
        ]
        if hub_only and self.hub is None:
            raise ValueError(f"only a hub data set has '{hub_only[0].replace('config', 'name')}'")
        if self.part is not None:
            low, high = self.part
            if not 0 <= low < high <= 1:
                raise ValueError(
                    f"'part: [{low:g}, {high:g}]' is no share: expected 0 <= LOW < HIGH <= 1"
                )
            if self.validation:
                raise ValueError("'part' and 'validation' both choose rows: leave one of them out")

    @property
    def whole(self) -> DataSource:
        """All rows of the source, as its split sees them."""
        return self.model_copy(update={"limit": None, "part": None, "validation": 0.0})

    @property
    def format(self) -> Component | None:
        """The format and its options; None detects it from the first row."""
        return self._format

    def in_format(self, format: Component | None) -> DataSource:
        """The same source, read in a format."""
        source = self.model_copy()
        source._format = format
        return source

    @property
    def name(self) -> str:
        """The source in messages: a stage, a path, or a hub data set with its configuration and
        split.
        """
        if self.stage:
            return f"stage {self.stage}"
        if self.path is not None:
            return str(self.path)
        return f"{self.hub}{f'/{self.config}' if self.config else ''}[{self.split or 'train'}]"


@dataclass(frozen=True)
class DataSpec:
    """A recipe's data entry: one or more sources, read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class SourceFacts:
    """How a source was read.

    format: the name of the format. recognized: whether the first row decided it, and not the
    recipe. rows: good rows to read now. held_out: good rows on the other side of the split.
    skipped: bad rows. weight: as the recipe says; `Loaded.weights` are the shares. sample: a row to
    read now, with a pair if one has. notes: what the format decided about all rows, in words, and
    which the recipe does not want.
    """

    name: str
    format: str
    recognized: bool
    rows: int
    held_out: int = 0
    skipped: int = 0
    weight: float | None = None
    sample: Group | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Loaded:
    """The groups of a data entry, in the order of its sources.

    validation: held out from training. skipped: the bad rows of sources with `on_bad_row: skip`.
    sources: in order; a group's `origin.source` is the place of its own.
    """

    groups: list[Group]
    validation: list[Group]
    skipped: list[SkippedRow]
    sources: tuple[SourceFacts, ...]

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The share of each source among the rows drawn; None if every row counts the same."""
        if len(self.sources) < 2 or not any(source.weight for source in self.sources):
            return None
        filled = [source.weight or 1.0 for source in self.sources]
        return tuple(weight / sum(filled) for weight in filled)


def load(
    spec: DataSpec,
    *,
    formats: Formats,
    stage_data: StageData,
    commit: CommitOf,
    keys: Callable[[DataSource], Keys] | None = None,
) -> Loaded:
    """Read all sources of a data entry.

    formats: by name; tried on the first row of a source without a format. stage_data: the file
    that holds a stage's groups. commit: the commit of a hub data set. keys: of the split that a
    source shares with others of its recipe; default: of its own.

    `validation` holds out what `part` would read from 0 to it, and in the other sources what shares
    its opening; see `alignkit.evaluation.split`.

    Raises `DataError` that lists the bad rows of all sources, or names a source that has no usable
    row, or from which nothing can be held out.
    """
    readers = [
        SourceReader(source, formats, stage_data, commit, place, keys)
        for place, source in enumerate(spec.sources)
    ]
    groups: list[Group] = []
    skipped: list[SkippedRow] = []
    errors: list[SkippedRow] = []
    for reader in readers:
        bad = reader.bad
        found = [*chain.from_iterable(row.groups for row in reader.rows_of_part())]
        for row in bad:
            (skipped if row.left_out or reader.source.on_bad_row == "skip" else errors).append(row)
        if not found and not errors:
            why = left_out(bad) or skips(bad) or "it has no row that the recipe reads"
            raise DataError(f"{reader.source.name}: no usable row; {why}")
        groups += found
    if errors:
        raise DataError(f"{bad_rows_error(errors)}\nhelp: correct the rows{OR_SKIP}")
    kept, other = _split(groups, readers)
    facts = tuple(reader.facts(kept, other) for reader in readers)
    return Loaded(kept, other, skipped, facts)


def content_digest(path: Path) -> str:
    """SHA-256 of what a file or folder says: of its bytes, or of what its reader finds in it."""
    if path.is_dir():
        return folder_digest(path)
    reader = reader_of(path)
    return file_digest(path) if reader is None else reader.digest(path)


# --- reading a source


@dataclass(frozen=True)
class ReadRow:
    """A row of a source. raw: as parsed, a BadRow if it cannot be. groups: none if it is bad. bad:
    why.
    """

    number: int
    raw: Any
    groups: Sequence[Group] = ()
    bad: BadRow | None = None


class SourceReader:
    """Turns a source's rows into groups; the first row that can be parsed decides the format.

    bad: the rows of which `rows` has found that they cannot be used.
    """

    def __init__(
        self,
        source: DataSource,
        formats: Formats,
        stage_data: StageData,
        commit: CommitOf,
        place: int = 0,
        keys: Callable[[DataSource], Keys] | None = None,
    ):
        """place: the source's index in its data entry, which its groups' origin holds. keys: see
        `load`.
        """
        self.split_keys = keys
        self.source, self.formats, self.stage_data, self.commit, self.place = (
            source,
            formats,
            stage_data,
            commit,
            place,
        )
        self.format: Format | None = None
        self.format_name = ""
        self.bad: list[SkippedRow] = []
        if source.format is not None:
            self.format = source.format.registration.implementation(source.format.options)
            self.format.renamed = source.columns
            self.format_name = source.format.name
        elif source.stage:
            self._choose(["groups"], None)

    def rows(self) -> Iterator[ReadRow]:
        """The rows with their groups, up to the source's limit of good ones. Raises DataError for
        an unusable file.
        """
        good = 0
        for number, raw in self.numbered_rows():
            try:
                row = ReadRow(number, raw, self._groups_of(number, raw))
            except BadRow as error:
                self.bad.append(
                    SkippedRow(self.source.name, number, str(error), isinstance(error, LeftOut))
                )
                row = ReadRow(number, raw, bad=error)
            yield row
            good += row.bad is None
            if good == self.source.limit:
                break

    def rows_of_part(self) -> Iterator[ReadRow]:
        """The rows in the share of the conversations that the source names, all without one; and
        the bad rows, which lie nowhere.
        """
        if self.source.part is None:
            yield from self.rows()
            return
        low, high = self.source.part
        for row in self.rows():
            # The groups of one row are on one side
            places = [split.fraction(self.key(group)) for group in row.groups[:1]]
            if row.bad is not None or any(low <= place < high for place in places):
                yield row

    def key(self, group: Group) -> str:
        """What decides where a group lies in the split of its source."""
        opening = split.opening(group)
        return self._keys.get(opening, opening)

    @cached_property
    def _keys(self) -> Keys:
        if self.split_keys is not None:
            return self.split_keys(self.source)
        whole = self.source.whole
        return keys_of_split([SourceReader(whole, self.formats, self.stage_data, self.commit)])

    def numbered_rows(self) -> NumberedRows:
        """Numbered rows, as their format makes them; a row that cannot be parsed is a `BadRow`."""
        table = registration_of(self.source.path) is not None
        rows = ((number, without_fills(row, table)) for number, row in self.stored_rows())
        try:
            return self._recognized(rows) if self.format is None else self.format.rows(rows)
        except BadRow as error:
            raise DataError(f"{self.source.name}: {error}") from error

    def _recognized(self, rows: NumberedRows) -> NumberedRows:
        """The rows, as the format makes them that the first one has."""
        for number, row in rows:
            try:
                renamed = with_renamed_columns(raise_if_bad(row), self.source.columns)
            except BadRow:
                yield number, row
            else:
                format = self._choose(self._matching(renamed), renamed)
                yield from format.rows(chain([(number, row)], rows))

    def _matching(self, row: Any) -> list[str]:
        return [name for name, cls in self.formats.items() if matches(cls, row)]

    def stored_rows(self) -> NumberedRows:
        """Numbered rows as the file has them."""
        path = self.source.path
        if self.source.stage:
            path = self.stage_data(self.source.stage)
        if path is not None and path.is_dir():
            return (self.format or Format()).rows_of_folder(path)
        ours = {
            ".txt": self._text_rows,
            ".json": json_rows,
            ".jsonl": jsonl_rows,
            ".ndjson": jsonl_rows,
        }
        if path is not None and (read := ours.get(suffix_of(path))):
            return read(path)
        if reader := reader_of(path):
            return reader.rows_of(self.source, self.commit)
        known = [*ours, *plugins().names("reader")]
        if path is None:
            raise DataError(f"{self.source.name}: no plugin reads it; write it to a file")
        raise DataError(
            f"{path}: unknown file type '{suffix_of(path)}'; use one of {', '.join(known)}"
        )

    def _text_rows(self, path: Path) -> NumberedRows:
        format = self.format or self._choose(
            [name for name, cls in self.formats.items() if cls.plain_text], ""
        )
        return iter(
            format.rows_of_text((number, line.rstrip("\r\n")) for number, line in text_lines(path))
        )

    def _choose(self, matching: Sequence[str], row: Any) -> Format:
        """Read the source in the only format that matches its first row. Raises `DataError` if none
        or several do.
        """
        if len(matching) == 1:
            (self.format_name,) = matching
            self.format = self.formats[self.format_name]()
            self.format.renamed = self.source.columns
            return self.format
        content = f"columns {', '.join(row)}" if isinstance(row, Mapping) else kind_of(row)
        if matching:
            raise DataError(
                f"{self.source.name}: several formats match the first row ({content}). "
                f"Choose one, as in `data: {{FORMAT: FILE}}`: {', '.join(matching)}"
            )
        help = next(
            plugins().ask("advice", row, self.formats),
            f"name the format (`alignkit plugins FORMAT` describes it): {', '.join(self.formats)}",
        )
        raise UnknownFormat(
            f"{self.source.name}: no format matches the first row ({content})\nhelp: {help}"
        )

    def _groups_of(self, number: int, raw: Any) -> list[Group]:
        """The checked groups of a row, with ids and the source's meta. Raises BadRow."""
        row = with_renamed_columns(raise_if_bad(raw), self.source.columns)
        format = self.format
        assert format is not None  # the first row that can be read has chosen it
        skip = self.source.on_bad_row == "skip"
        origin = Origin(self.source.name, number, skip, self.place, self.source.group)
        try:
            groups = checked_groups(format, row)
            origin = replace(origin, asks=format.asks(row))
            return [self._completed(group, raw, origin) for group in groups]
        except BadRow:
            raise
        except Exception as error:  # if a format fails, the user still learns at which row
            where = line_in(error, [type(format).__module__])
            raise BadRow(
                f"the format {type(format).__name__} failed: {reason_of(error)}{where}"
            ) from error

    def _completed(self, group: Group, row: Any, origin: Origin) -> Group:
        name = group.id or group_id(group.prompt, group.responses, group.tools)
        meta = {**group.meta, **self.source.meta}
        weights = meta
        if isinstance(row, Mapping):
            if (held := self.source.group) is not None and held in row:
                meta.setdefault(held, row[held])
            if "alignkit" in row:  # a group that was written knows its own weight
                weights = self.source.meta
        weight = Format.number(weights, "weight")
        if weight is None or not group.responses:
            weight = group.weight
        completed = replace(group, id=name, meta=meta, origin=origin, weight=weight)
        check_weights(completed)
        return completed

    def facts(self, kept: Sequence[Group], other: Sequence[Group]) -> SourceFacts:
        """How the source was read. kept, other: the groups on both sides, of all sources."""
        kept = [group for group in kept if _place(group) == self.place]
        return SourceFacts(
            self.source.name,
            self.format_name,
            self.source.format is None,
            rows=len(kept),
            held_out=sum(_place(group) == self.place for group in other),
            skipped=sum(not row.left_out for row in self.bad),
            weight=self.source.weight,
            sample=next(filter(resolved_pairs, kept), next(iter(kept), None)),
            notes=[*getattr(self.format, "notes", ()), *filter(None, [left_out(self.bad)])],
        )


def keys_of_split(readers: Iterable[SourceReader]) -> Keys:
    """The keys of sources that share a split. Rows of one file are joined, whatever reads them."""
    rows = dict[tuple[str, int], tuple[Any, list[Group]]]()
    for reader in readers:
        # More are not compared, and only `group` joins other rows than those of one opening
        most = None if reader.source.group else split.MOST + 1
        for row in islice(reader.rows(), most):
            if not isinstance(row.raw, BadRow):
                place = reader.source.name, row.number
                rows.setdefault(place, (row.raw, []))[1].extend(row.groups)
    return split.keys_of(list(rows.values()))


# --- recognizing a format


class UnknownFormat(DataError):
    """No format recognizes a source, whose columns the user may name."""


# --- splitting


def _place(group: Group) -> int:
    if group.origin is not None:
        return group.origin.source
    return 0


def _split(
    groups: Sequence[Group], readers: Sequence[SourceReader]
) -> tuple[list[Group], list[Group]]:
    """The groups on either side: what the `validation` of a source holds out, of all sources."""
    if not any(reader.source.validation for reader in readers):
        return list(groups), []
    keys = [readers[_place(group)].key(group) for group in groups]
    shares = list[set[Any]]()
    for key, group in zip(keys, groups, strict=True):
        shares.append({key, *split.openings(group), str(group.origin)})
    sets = split.connected(shares)
    held_out: set[int] = set()
    for reader in readers:
        share, lowest = reader.source.validation, dict[int, float]()
        for at, key, group in zip(sets, keys, groups, strict=True):
            if share and _place(group) == reader.place:
                lowest[at] = min(lowest.get(at, 1.0), split.fraction(key))
        order = sorted(lowest, key=lambda at: (lowest[at], at))
        if share and len(order) < 2:
            count = sum(_place(group) == reader.place for group in groups)
            column = reader.source.group
            what = f"the same '{column}'" if column else "one prompt, or repeat each other"
            raise DataError(
                f"{reader.source.name}: 'validation: {share:g}' holds out nothing: all {count} "
                f"rows have {what}\nhelp: leave 'validation' out, or name other data for it"
            )
        chosen = [at for at in order if lowest[at] < share]
        held_out.update(chosen[: len(order) - 1] or order[:1])  # at least one set on each side
    training = [group for at, group in zip(sets, groups, strict=True) if at not in held_out]
    return training, [group for at, group in zip(sets, groups, strict=True) if at in held_out]
