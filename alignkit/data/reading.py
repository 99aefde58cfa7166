"""A source's rows as groups: which format reads them, and what every group gets from its source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignkit.data import hub
from alignkit.data.files import SkippedRow, file_rows, kind_of, raise_if_bad, suffix_of, text_lines, without_fills
from alignkit.data.group import Group, Origin, Response, group_from_json, group_id, resolved_pairs
from alignkit.errors import BadRow, DataError, LeftOut, PluginError
from alignkit.formats import FOREIGN, LABEL_COLUMNS, Format
from alignkit.io.digest import file_digest, folder_digest
from alignkit.plugin_errors import failure
from alignkit.readers import reader_of
from alignkit.registry import Component

NEAREST = 5  # formats that an error suggests
SAMPLES = 1000  # groups of a source that may be shown: of a small part, the first ones may all be elsewhere
# What columns with a question and with its answer are called, besides `prompt` and `completion`.
ASKED = {"question", "query", "problem", "input", "instruction", "goal", "ctx", "request", "user", "q"}
ASKED |= {"frage", "pregunta", "domanda", "vraag"}
SAID = {"answer", "response", "output", "solution", "target", "reply", "answerkey", "assistant", "a"}
SAID |= {"antwort", "réponse", "respuesta", "risposta", "antwoord"}
# The same for columns with a better and with a worse answer, besides `chosen` and `rejected`.
BETTER, WORSE = (
    {"better", "good", "best", "preferred", "accepted"},
    {"worse", "bad", "worst", "dispreferred", "rejected"},
)
WEIGHTS = ("weight", "sample_weight", "loss_weight")  # columns that say how much a row counts in a loss
_SAME = dict.fromkeys(("question", "query", "goal"), "prompt") | dict.fromkeys(("answer", "target"), "completion")
Part = Literal["training", "validation"]
Formats = Mapping[str, type[Format]]
StageData = Callable[[str], Path]


@dataclass(frozen=True)
class DataSource:
    """One source of groups: a file, a stage's data or a hub data set.

    path, stage, hub: exactly one is set. hub may be a local folder.
    config, revision, data_files, split: the part of a hub data set; see `hub.hub_rows`.
    format: the format and its options; None detects it from the first row.
    limit: the number of good rows to read; None reads all.
    validation: the share of prompts held out for validation, in [0, 1).
    part: read only this side of the split; None reads both.
    group: the column whose equal values stay on one side of the split.
    weight: the source's share of the rows drawn, relative to others of the same entry; None draws by row.
    on_bad_row: `error` stops with all bad rows, `skip` counts them.
    columns: the name that the format expects -> the name in the file.
    meta: values added to every group's `meta`; they replace the row's own.
    """

    format: Component | None = None
    path: Path | None = None
    stage: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    data_files: Any = None
    limit: int | None = None
    split: str | None = None
    validation: float = 0.0
    part: Part | None = None
    group: str | None = None
    weight: float | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source in messages: a stage, a path, or a hub data set with its configuration and split."""
        if self.stage:
            return f"stage {self.stage}"
        if self.path is not None:
            return str(self.path)
        return f"{self.hub}{f'/{self.config}' if self.config else ''}[{self.split or 'train'}]"


@dataclass(frozen=True)
class SourceRows:
    """The good groups of a source, at most its limit, and the bad rows before that limit.

    format: the name of the format that read them. recognized: whether the first row decided it, and not the recipe.
    samples: the first groups, from which one of the part that is read will be shown. notes: the format's.
    """

    groups: list[Group]
    bad: list[SkippedRow]
    format: str
    recognized: bool
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()

    def sample(self, kept: Sequence[Group]) -> Sample | None:
        """The first group that is kept, or the first one with a pair: it shows which response counts as better."""
        there = set(map(id, kept))
        samples = [sample for sample in self.samples if id(sample.group) in there]
        samples = samples or [Sample(group, "") for group in kept[:1]]
        return next((sample for sample in samples if resolved_pairs(sample.group)), next(iter(samples), None))


@dataclass(frozen=True)
class Sample:
    """A group that shows how rows are understood. reason: what made one response the better one, such as `label 2`.

    unused: columns that the format has only kept, for rewards, without those of single words.
    """

    group: Group
    reason: str
    unused: tuple[str, ...] = ()


def read_source(
    source: DataSource, place: int, formats: Formats, stage_data: StageData, commit: hub.CommitOf
) -> SourceRows:
    """Read a source. place: its index in its data entry, which its groups' origin holds."""
    reader = RowReader(source, formats)
    groups: list[Group] = []
    bad: list[SkippedRow] = []
    good, samples = 0, list[Sample]()
    skip = source.on_bad_row == "skip"
    for number, row in reader.rows(stage_data, commit):
        try:
            found = reader.groups(raise_if_bad(row), Origin(source.name, number, skip, place))
        except BadRow as error:
            bad.append(SkippedRow(source.name, number, str(error), isinstance(error, LeftOut)))
        else:
            groups += found
            good += 1
            if len(samples) < SAMPLES:
                samples += reader.samples(row, found)
        if source.limit is not None and good >= source.limit:
            break
    notes = [*reader.format.notes] if reader.format is not None else []
    if len(weights := {group.weight for group in groups if group.responses}) > 1:
        notes.append(f"rows weigh {min(weights):g} to {max(weights):g} in the loss of methods that learn from data")
    return SourceRows(groups, bad, reader.format_name, source.format is None, samples, notes)


def content_digest(path: Path) -> str:
    """SHA-256 of what a file or folder says: of its bytes, or of what its reader finds in it."""
    if path.is_dir():
        return folder_digest(path)
    reader = reader_of(path)
    return file_digest(path) if reader is None else reader.digest(path)


def recognized_format(source: DataSource, formats: Formats, stage_data: StageData, commit: hub.CommitOf) -> str:
    """The format that the source's first row decides; empty if the recipe names one, or if none can be found."""
    if source.format is not None or source.stage:
        return ""
    reader = RowReader(source, formats)
    try:
        for _, row in reader.rows(stage_data, commit):
            if reader.format is None and not isinstance(row, BadRow):
                reader.recognize(row)
            if reader.format is not None:
                break
    except (DataError, BadRow):  # reported when the stage reads its data
        return ""
    return reader.format_name


class UnnamedFormat(DataError):
    """Only formats that a recipe must name can read a source. formats: their names."""

    def __init__(self, message: str, formats: tuple[str, ...]):
        super().__init__(message)
        self.formats = formats


class OtherColumns(DataError):
    """No format reads a source's columns.

    columns: the names. renamings: columns (expected -> actual) with which one format reads them, by its name.
    """

    def __init__(self, message: str, columns: Sequence[str], renamings: Mapping[str, dict[str, str]]):
        super().__init__(message)
        self.columns, self.renamings = columns, renamings


class _StoredGroups(Format):
    """Groups that a stage wrote: alignkit made them, so only their shape is checked."""

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        pass


class RowReader:
    """Turns a source's rows into groups; the first row that can be parsed decides the format."""

    def __init__(self, source: DataSource, formats: Formats):
        self.source = source
        self.formats = formats
        self.format: Format | None = None
        self.format_name = ""
        if source.format is not None:
            self.format = source.format.registration.implementation(source.format.options)
            self.format_name = source.format.name
        elif source.stage:
            self.format, self.format_name = _StoredGroups(), "groups"

    def rows(self, stage_data: StageData, commit: hub.CommitOf) -> Iterator[tuple[int, Any]]:
        """Numbered rows; a row that cannot be parsed is a `BadRow`."""
        rows = ((number, without_fills(row)) for number, row in self._stored_rows(stage_data, commit))
        try:
            return rows if self.format is None else self.format.rows(rows)
        except BadRow as error:
            raise DataError(f"{self.source.name}: {error}") from error

    def _stored_rows(self, stage_data: StageData, commit: hub.CommitOf) -> Iterator[tuple[int, Any]]:
        source = self.source
        if source.hub:
            return hub.hub_rows(
                source.hub,
                source.config,
                source.revision,
                source.data_files,
                source.split or "train",
                commit,
            )
        path = stage_data(source.stage) if source.stage else Path(str(source.path))
        if path.is_dir():
            return (self.format or Format()).rows_of_folder(path)
        if suffix_of(path) == ".txt":
            return self._text_rows(path)
        reader = reader_of(path)
        return file_rows(path) if reader is None else reader.rows(path)

    def _text_rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        if self.format is None:
            candidates = {name: cls for name, cls in self.formats.items() if cls.plain_text}
            if len(candidates) != 1:
                choices = _described(candidates or self.formats)
                raise DataError(f"{path}: a text file needs a format, as in `data: {{FORMAT: FILE}}`:\n{choices}")
            self.format_name, cls = next(iter(candidates.items()))
            self.format = cls()
        lines: list[tuple[int, str]] = []
        for number, line in text_lines(path):
            if isinstance(line, BadRow):
                yield number, line
            else:
                lines.append((number, line))
        yield from self.format.rows_of_text(lines)

    def recognize(self, row: Any) -> None:
        """Decide the format by this row. Raises `DataError` if no format or several match."""
        row = _with_renamed_columns(row, self.source.columns)
        self.format_name = _detected_format(row, self.formats, self.source.name)
        self.format = self.formats[self.format_name]()

    def groups(self, row: Any, origin: Origin) -> list[Group]:
        """The checked groups of a row, with ids and the source's meta."""
        if self.format is None:
            self.recognize(row)
        assert self.format is not None
        try:
            groups = checked_groups(self.format, row, self.source.columns)
            return [self._identified(group, row, origin) for group in groups]
        except BadRow:
            raise
        except Exception as error:  # if a format fails, the user still learns at which row
            problem = f"the format {type(self.format).__name__} {failure(error, self.format)}"
            if _fails_on_its_example(self.format):
                raise PluginError(f"{problem}, also on its own example") from error
            raise BadRow(problem) from error

    def samples(self, row: Any, found: Sequence[Group]) -> list[Sample]:
        """The groups of a row with what made one of their responses the better one."""
        assert self.format is not None
        paired = any(map(resolved_pairs, found))
        reason = self.format.reason(_with_renamed_columns(row, self.source.columns)) if paired else ""
        columns = row if isinstance(row, Mapping) else {}
        used = {*reason.split(), *WEIGHTS, *LABEL_COLUMNS} if any(group.responses for group in found) else set()
        meant = [(name, value) for name, value in columns.items() if name not in used and _is_meant(value)]
        return [
            Sample(
                group,
                reason if resolved_pairs(group) else "",
                tuple(name for name, value in meant if group.meta.get(name) is value),
            )
            for group in found
        ]

    def _identified(self, group: Group, row: Any, origin: Origin) -> Group:
        name = group.id or group_id(group.prompt, group.responses, group.tools)
        meta = {**group.meta, **self.source.meta}
        if self.source.group is not None and isinstance(row, Mapping) and self.source.group in row:
            meta.setdefault(self.source.group, row[self.source.group])
        ours = isinstance(row, Mapping) and "alignkit" in row  # a group that was written knows its own weight
        return replace(
            group, id=name, meta=meta, origin=origin, weight=_weight(group, self.source.meta if ours else meta)
        )


def _is_meant(value: Any) -> bool:
    """Whether a column seems to be there for a reader: all but single words, such as names and digests."""
    if isinstance(value, str):
        return len(value.split()) > 1 or value.replace(".", "").isdecimal()
    return value not in (None, [], {})


def _weight(group: Group, meta: Mapping[str, Any]) -> float:
    """How much a row with a response counts in a loss, by one of the columns WEIGHTS."""
    found = group.weight
    for name in WEIGHTS if group.responses else ():
        try:
            weight = Format.number(meta, name)
        except BadRow:
            weight = -1.0
        if weight is None:
            continue
        if weight < 0:
            raise BadRow(
                f"column '{name}' says how much a row counts in a loss, so it must be a number of 0 or more, not "
                f"{str(meta[name])[:60]!r}; if it means something else: `columns: {{other_{name}: {name}}}`"
            )
        found = weight
    return found


def _fails_on_its_example(format: Format) -> bool:
    """Whether a format cannot read any row, so that the fault is not the row's."""
    try:
        checked_groups(format, json.loads(format.example), {})
    except (BadRow, json.JSONDecodeError):
        return False
    except Exception:
        return True
    return False


def checked_groups(format: Format, row: Any, columns: Mapping[str, str]) -> list[Group]:
    """The groups that a format reads from a row. columns: expected -> actual. Raises `BadRow` for a bad one."""
    row = _with_renamed_columns(row, columns)
    format.check_columns(row, columns)
    groups = list(format.groups(row))
    for group in groups:
        if not isinstance(group, Group):
            raise TypeError(f"`read` must return a Group, not {type(group).__name__}")
        turns: Any = group.prompt
        if isinstance(turns, str) or not all(isinstance(turn, Mapping) for turn in turns):
            raise TypeError("a Group's prompt must be a tuple of messages; `self.conversation` makes them of a text")
        if not all(isinstance(response, Response) for response in group.responses):
            raise TypeError("a Group's responses must be a tuple of Response objects")
        format.check(group)
    return groups


def _with_renamed_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with the column names that the format expects. columns: expected -> actual."""
    if not columns:
        return row
    if not isinstance(row, Mapping):
        raise BadRow(f"columns cannot be renamed: the row is {kind_of(row)}, not an object")
    missing = [actual for actual in columns.values() if actual not in row]
    if missing:
        raise BadRow(f"no column {', '.join(map(repr, missing))} to rename; the row has {_listed(row)}")
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return others | {expected: row[actual] for expected, actual in columns.items()}


_GEMINI = "Gemini's conversations (of one question and its answer; write longer ones as lists of `messages`)"
# Columns of vendors' own layouts -> what they are, and the template that reads them.
_LAYOUTS = {
    frozenset({"input", "preferred_output", "non_preferred_output"}): (
        "OpenAI's preferences",
        '{prompt: "{input.messages}", chosen: "{preferred_output}", rejected: "{non_preferred_output}"}',
    ),
    frozenset({"systemInstruction", "contents"}): (
        _GEMINI,
        '{system: "{systemInstruction.parts[0].text}", prompt: "{contents[0].parts[0].text}", '
        'response: "{contents[1].parts[0].text}"}',
    ),
    frozenset({"contents"}): (
        _GEMINI,
        '{prompt: "{contents[0].parts[0].text}", response: "{contents[1].parts[0].text}"}',
    ),
}


def _detected_format(row: Any, formats: Formats, source: str) -> str:
    """The only format that matches a source's first row. Raises `DataError` if none or several do."""
    matching = {name: cls for name, cls in formats.items() if _matches(cls, row)}
    if len(matching) == 1:
        return next(iter(matching))
    renamings = {} if matching else renamings_of(row, formats)
    renamed = _renaming_lines(renamings)
    content = f"columns {_listed(row)}" if isinstance(row, Mapping) else kind_of(row)
    if matching:
        raise DataError(
            f"{source}: several formats match the first row ({content}). "
            f"Choose one, as in `data: {{FORMAT: FILE}}`:\n{_described(matching)}"
        )
    if readable := {name: cls for name, cls in formats.items() if _reads(cls, row)}:
        raise UnnamedFormat(
            f"{source}: no format recognizes the first row ({content}), but {' or '.join(readable)} can read it if you "
            f"name it, as in `data: {{{next(iter(readable))}: FILE}}`:\n{_described(readable)}{renamed}",
            tuple(readable),
        )
    for columns, (whose, template) in _LAYOUTS.items():
        if isinstance(row, Mapping) and columns <= row.keys():
            raise DataError(
                f"{source}: no format matches the first row ({content})\n"
                f"help: these are {whose}, which this line reads: data: {{path: FILE, template: {template}}}"
            )
    raise OtherColumns(
        f"{source}: no format matches the first row ({content}). Name the format, rename columns with "
        f"`columns: {{expected: actual}}`, or say what they mean with a `template`. The nearest formats:\n"
        f"{_described(_nearest(row, formats))}{renamed}",
        list(map(str, row)) if isinstance(row, Mapping) else (),
        renamings,
    )


def renamings_of(row: Any, formats: Formats) -> dict[str, dict[str, str]]:
    """Columns (expected -> actual) with which exactly one format reads a row, by the format: by their usual names."""
    if not isinstance(row, Mapping):
        return {}
    names = (ASKED, SAID, BETTER, WORSE)
    asked, said, better, worse = ([name for name in row if str(name).lower() in some] for some in names)
    if "prompt" not in row and len(asked) != 1:
        return {}
    base = {} if "prompt" in row else {"prompt": asked[0]}
    foreign = {f"other_{name}": name for name in row if name in FOREIGN}
    pairs = [{"chosen": better[0], "rejected": worse[0]}] if len(better) == len(worse) == 1 else []
    answers = [] if foreign else [*pairs, *({"completion": name} for name in said)]
    renamings: dict[str, dict[str, str]] = {}
    for columns in [*({**base, **answer} for answer in answers), base | foreign]:
        renamed = _with_renamed_columns(row, columns)
        fitting = [name for name, cls in formats.items() if _matches(cls, renamed) and _reads(cls, renamed)]
        if columns and len(fitting) == 1:
            renamings.setdefault(fitting[0], columns)
    return renamings


def _renaming_lines(renamings: Mapping[str, Mapping[str, str]]) -> str:
    """The lines of YAML that rename columns; empty if there are none."""
    lines = []
    for name, columns in renamings.items():
        named = ", ".join(f"{expected}: {actual}" for expected, actual in columns.items())
        unseen = "".join(f"; no model sees '{actual}'" for actual in columns.values() if actual in FOREIGN)
        lines.append(f"\n  data: {{path: FILE, columns: {{{named}}}}}  # {name}{unseen}")
    return f"\nOr say what its columns mean:{''.join(lines)}" if lines else ""


def _listed(row: Mapping[str, Any], most: int = 20) -> str:
    """The names of a row's columns, not more than one reads."""
    names = [*map(str, row)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _matches(format_class: type[Format], row: Any) -> bool:
    try:
        return format_class.matches(row)
    except Exception:  # a plugin that fails on a foreign row does not match it
        return False


def _reads(format_class: type[Format], row: Any) -> bool:
    """Whether a format that does not recognize a row can read it if a recipe names it."""
    try:
        return bool(checked_groups(format_class(), row, {}))
    except Exception:  # whatever a format raises on a foreign row, it does not read it
        return False


def _nearest(row: Any, formats: Formats) -> Formats:
    """The formats whose description names most of the row's columns; all formats if none names any."""
    words = re.findall(r"[a-z]+", " ".join(map(str, row)).lower()) if isinstance(row, Mapping) else []
    columns = {_SAME.get(word, word) for word in words}
    named = {name: len(columns & set(re.findall("[a-z]+", cls.wants.lower()))) for name, cls in formats.items()}
    best = sorted((name for name in named if named[name]), key=lambda name: (-named[name], name))[:NEAREST]
    return {name: formats[name] for name in best or sorted(formats)}


def _described(formats: Formats) -> str:
    width = max((len(name) for name in formats), default=0)
    return "\n".join(f"  {name:<{width}}  {cls.wants}" for name, cls in formats.items())
