"""What data files hold, by what most of their rows are, and how a recipe reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from alignkit.data.group import Group, Response, resolved_pairs, responses_of, why_not_demonstration
from alignkit.data.sources import SourceReader, UnknownFormat
from alignkit.errors import DataError
from alignkit.evaluation.numbers import number_of
from alignkit.io.digest import commit_of
from alignkit.plugins import plugins
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.entries import data_of
from alignkit_plugins.formats.readings import Reading, readings_of
from alignkit_plugins.formats.shown import counts
from alignkit_plugins.formats.spoken import all_turns

COMMAND = "alignkit init"
MOST_ROWS = 100_000  # that are read to find out what a file holds
ANSWER = "answer"  # the column in which rewards look for a known answer
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")  # LaTeX's commands are none


@dataclass(frozen=True)
class Kind:
    """What a row may be.

    words: many of them. columns: how `--columns` names theirs. holds: whether a row is one. tells:
    whether such a row says so itself, or else only an option does.
    """

    words: str
    columns: str
    holds: Callable[[Group], Any]
    tells: Callable[[Group], Any] = bool


def is_number(text: Any) -> bool:
    """Whether a text is a number."""
    return number_of(str(text)) is not None


def _in_words(text: str) -> bool:
    """Whether a text is no number, letter or formula, which can be checked."""
    return bool(_WORD.search(text)) and not is_number(text)


def _is_labeled(row: Group) -> bool:
    return len(row.responses) == 1 and row.responses[0].label is not None


def _has_answer(row: Group) -> bool:
    return bool(row.prompt) and row.meta.get(ANSWER) not in (None, "", [])


def _is_checkable(row: Group) -> bool:
    return _has_answer(row) and not _in_words(str(row.meta[ANSWER]))


KINDS: Mapping[str, Kind] = {  # a file's is the first of those that most of its rows are
    "pairs": Kind(
        "pairs of a better and a worse response", "prompt=A,chosen=B,rejected=C", resolved_pairs
    ),
    "labels": Kind(
        "responses with a label, good or bad", "prompt=A,completion=B,label=C", _is_labeled
    ),
    "known-answers": Kind(
        "questions with a known answer",
        "prompt=A,answer=B",
        _has_answer,
        _is_checkable,
    ),
    "demos": Kind(
        "prompts with one good response each",
        "prompt=A,completion=B",
        lambda row: not why_not_demonstration(row),
        lambda row: _in_words(all_turns(row.responses[0])),
    ),
    "prompts": Kind(
        "prompts without responses",
        "prompt=A",
        lambda row: row.prompt and not row.responses,
        lambda row: not _is_checkable(row),
    ),
}


@dataclass(frozen=True)
class DataFile:
    """A file, as a recipe reads it.

    file: its place. path: as the recipe names it. keys: the others of its data entry. named:
    whether the recipe names its format. read: the rows that can be read. bad: those that must be
    dropped, and why.
    """

    file: Path
    path: str
    kind: str
    keys: Mapping[str, Any]
    format: str
    named: bool
    read: Sequence[Group]
    bad: Sequence[str]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    @property
    def limit(self) -> int | None:
        """How many rows are read; None: all."""
        return self.keys.get("limit")

    @property
    def examples(self) -> list[Group]:
        """The rows of its kind."""
        return list(filter(KINDS[self.kind].holds, self.read))

    @property
    def counted(self) -> str:
        """What it holds, as `check` and a run count it: `300 conversations, 300 pairs`."""
        return counts(self.examples, len(self.bad))

    @property
    def responses(self) -> list[Response]:
        """The responses of its examples."""
        return responses_of(self.examples)

    def limited(self, characters: float) -> DataFile:
        """The file, read up to about the row that brings its length to this many characters."""
        texts = [all_turns(response) for response in self.responses]
        for group in self.read:
            texts += [turn["content"] for turn in group.prompt]
        rows = list(dict.fromkeys(group.origin for group in self.read))
        limit = max(1, int(float(f"{len(rows) * characters / sum(map(len, texts)):.2g}")))
        if limit >= len(rows):
            return self
        kept = set(rows[:limit])
        read = [group for group in self.read if group.origin in kept]
        return replace(self, keys={**self.keys, "limit": limit}, read=read)

    def part(self, *share: float) -> list[Group]:
        """The examples in a share of the conversations."""
        return _reader({"path": str(self.file), "part": share}).of_part(self.examples, seed=0)

    def entry(self, *share: float) -> Any:
        """A data entry of a recipe that reads the examples in a share."""
        keys: dict[str, Any] = {"path": self.path}
        if share:
            keys["part"] = list(share)
        keys |= self.keys
        entry: Any = keys
        if len(keys) == 1:
            entry = self.path
        if self.named:
            return {self.format: entry}
        return entry


def _reader(entry: Any) -> SourceReader:
    """What reads a data entry."""
    (source,) = data_of(entry, COMMAND).sources
    return SourceReader(source, plugins().usable("format"), Path, partial(commit_of, "dataset"))


def first_row(path: Path) -> Mapping[str, Any]:
    """The first row of a file; empty if it is no table."""
    row = next((row for _, row in _reader(str(path)).numbered_rows()), None)
    if isinstance(row, Mapping):
        return row
    return {}


def recognize(path: Path, name: str, kind: str, columns: Mapping[str, str]) -> DataFile:
    """What a file holds, by `columns`, or else by those that a format expects or that are often
    called so.

    name: as the recipe names it. kind: what it is said to hold; empty: what most of its rows are.
    Raises DataError if it holds something else.
    """
    row = first_row(path)
    chosen = {expected: column for expected, column in columns.items() if column in row}
    readings = [Reading("", chosen)]
    if not chosen:
        readings += readings_of(row, plugins().usable("format"))
    found: list[DataFile] = []
    problems: list[DataError] = []
    for reading in readings:
        try:
            found.append(_read(path, name, kind, reading))
        except UnknownFormat as error:
            help = f"say which columns are meant: --columns {KINDS[kind or 'demos'].columns}"
            problems.append(DataError(f"{error}\nhelp: {help}"))
        except DataError as error:
            problems.append(error)
        if found and (kind or found[-1].kind != "prompts"):
            return found[-1]  # of prompts, another reading may find responses
    if not found:
        raise problems[0]
    return found[0]


def _read(path: Path, name: str, kind: str, reading: Reading) -> DataFile:
    """A file, read in one way. Raises DataError like `recognize`."""
    keys = dict[str, Any]()
    if reading.columns:
        keys["columns"] = dict(reading.columns)
    named = bool(reading.format and not reading.columns)
    entry = {"path": str(path), **keys, "limit": MOST_ROWS, "on_bad_row": "skip"}
    loaded = RunData(Path, 0).read(data_of({reading.format: entry} if named else entry, COMMAND))
    format = loaded.sources[0].format
    rows = {word: list(filter(one.holds, loaded.groups)) for word, one in KINDS.items()}
    if len({row.responses[0].label for row in rows["labels"]}) < 2:
        rows["labels"] = []  # good ones are demonstrations
    told = {word: len(list(filter(one.tells, rows[word]))) for word, one in KINDS.items()}
    most = max(told, key=told.__getitem__)
    expected, holds = KINDS[kind or most], KINDS[most].words
    help = "leave out the kind, and it is read as these"
    if not told[most]:
        holds, help = "none", f"compare responses: alignkit label {quote(str(path))}"
    if not rows[kind or most]:
        text = f"{path}: expected {expected.words}, but the file holds {holds} (format {format})"
        columns = f"or say which columns are meant: --columns {expected.columns}"
        raise DataError(f"{text}\nhelp: {help}, {columns}")
    kind = kind or most
    bad = [*map(str, loaded.skipped)]
    if kind == "demos":
        for row in loaded.groups:
            if why := why_not_demonstration(row):
                bad.append(f"{row.origin}: the row {why}")
    if loaded.sources[0].rows >= MOST_ROWS:
        keys["limit"] = MOST_ROWS
    if bad:
        keys["on_bad_row"] = "skip"
    bad = [text.removeprefix(f"{path.resolve().parent}/") for text in bad]
    return DataFile(path, name, kind, keys, format, named, loaded.groups, bad)
