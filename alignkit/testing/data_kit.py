"""The rules of what reads: formats of rows, readers of files, and sources of base models."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.calls import blame, call, create
from alignkit.data.group import Group
from alignkit.data.sources import checked_groups
from alignkit.errors import AlignkitError, BadRow, DataError, PluginError
from alignkit.formats import FOREIGN, Format
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins
from alignkit.readers import Reader
from alignkit.registry import Component, Registration
from alignkit.runs.bases import made_model
from alignkit.testing.rules import ConformanceError, check_registered, unchanged
from alignkit.testing.surroundings import Surroundings, conform, why_not_stored
from alignkit.testing.tiny import SPEC

EXTRA = "unrelated column"
ODD_VALUES: tuple[Any, ...] = (None, "", "x", 3, -0.5, True, [], ["x"], [[]], {}, {"a": None}, [{"role": "user"}, 3])
ODD_ROWS: tuple[Any, ...] = (None, "", "x", 3, True, [], ["x"], {}, {EXTRA: "x"})

LOST = "`rest` returns the columns that a format does not use, for the group's `meta`"
STRICT = "a file whose first row matches two formats is refused, so `matches` must look for columns that others lack"


# Formats


def check_format(
    cls: type[Format], options: Mapping[str, Any] | None = None, *, rows: Sequence[Any] | None = None
) -> None:
    """Raise ConformanceError listing every rule that a format breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: Good rows to read in addition to `example`.
    """
    conform("format", cls, options, partial(_format_problems, rows=rows or []))


def _format_problems(around: Surroundings, component: Component, rows: Sequence[Any]) -> Iterator[str]:
    format = create(component)
    cls, examples = type(format), list(rows)
    if not isinstance(cls.wants, str) or not cls.wants.strip():
        yield "`wants` must describe the format to users, in one line"
    try:
        examples[:0] = [json.loads(cls.example)] if cls.example or not rows else []
    except (TypeError, ValueError) as error:
        yield f"`example` must be a row as JSON, for errors and documentation: {error}"
        return
    for name in examples[0] if cls.example and isinstance(examples[0], Mapping) else ():
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", cls.wants):
            yield f"`wants` does not name the column '{name}' of `example`"
    if _recognizes(cls):
        yield from _match_problems(format, examples)
    for row in examples:
        yield from _row_problems(format, row)
    for row in ODD_ROWS:
        yield from _crashes(format, row)
    if isinstance(_read(format, {}), list):
        yield "`read` makes a group of an empty row: raise BadRow for columns that are missing"
    if cls.rows_of_text is not Format.rows_of_text or cls.plain_text:
        yield from _text_problems(format)


def _read(format: Format, row: Any) -> list[Group] | str:
    """The groups of a row as a run reads it, or why it is bad. Raises PluginError for any other exception."""
    try:
        with blame(format, "read"):
            try:
                return checked_groups(format, row, {})
            except BadRow as error:
                return str(error)
    except PluginError as error:
        raise PluginError(f"{error}, for {_shown(row)}; a row that cannot be read must raise BadRow") from error


def _recognizes(cls: type[Format]) -> bool:
    """Whether a format is ever recognized; otherwise the recipe must name it."""
    return getattr(cls.matches, "__func__", None) is not getattr(Format.matches, "__func__", None)


def _match_problems(format: Format, examples: Sequence[Any]) -> Iterator[str]:
    """Whether the format recognizes its own rows, and only those."""
    for row in examples:
        if not call(format, "matches", row):
            yield f"`matches` does not recognize {_shown(row)}"
    if wrong := [row for row in ODD_ROWS if not isinstance(row, str) and call(format, "matches", row)]:
        yield f"`matches` recognizes {', '.join(map(_shown, wrong))}: it must be strict"
    for other in plugins().registry.registrations("format"):
        theirs = other.implementation
        if theirs is type(format) or not theirs.example or not _recognizes(theirs):
            continue
        if call(format, "matches", json.loads(theirs.example)):
            yield f"`matches` also recognizes the example of '{other.name}': {STRICT}"
        for row in examples:
            if theirs.matches(row):
                yield f"`matches` and that of '{other.name}' both recognize {_shown(row)}: {STRICT}"


def _row_problems(format: Format, row: Any) -> Iterator[str]:
    """A row that must be read, and its variants."""
    with unchanged(f"`read` changes the row {_shown(row)}", row) as problems:
        groups = _read(format, row)
    if isinstance(groups, str):
        yield f"`read` refuses {_shown(row)}: {groups}"
        return
    if not groups:
        yield f"`groups` returns no group for {_shown(row)}: raise BadRow with the reason"
        return
    if problems:
        yield from problems
        return
    if _read(format, row) != groups:
        yield f"`read` makes other groups of {_shown(row)} when it reads it again"
    for why in filter(None, map(why_not_stored, groups)):
        yield f"`read` makes a group that {why}"
    reason = call(format, "reason", row)
    if not isinstance(reason, str):
        yield f"`reason` must return text, not {type(reason).__name__}"
    if isinstance(row, Mapping):
        yield from _column_problems(format, row, groups)


def _column_problems(format: Format, row: Mapping[str, Any], groups: list[Group]) -> Iterator[str]:
    """Every column is used, kept or refused; an odd value is refused or read, never a crash."""
    for name in row:
        if _read(format, {key: value for key, value in row.items() if key != name}) == groups:
            yield f"column '{name}' of {_shown(row)} changes nothing and is lost: {LOST}"
        for value in ODD_VALUES:
            yield from _crashes(format, {**row, name: value})
    kept = _read(format, {**row, EXTRA: "kept"})
    if isinstance(kept, list) and not all(group.meta.get(EXTRA) == "kept" for group in kept):
        yield f"a further column is not in the group's `meta`: {LOST}"
        return  # those below would be lost for the same reason
    for name, meaning in FOREIGN.items():
        if name not in row and _read(format, {**row, name: ["x"]}) == groups:
            yield f"column '{name}' ({meaning}) is lost: {LOST}, and refuses such columns"


def _crashes(format: Format, row: Any) -> list[str]:
    """A row that may be bad, but must not crash the format."""
    try:
        _read(format, row)
    except PluginError as error:
        return [str(error)]
    return []


def _text_problems(format: Format) -> Iterator[str]:
    """The rows of a .txt file."""
    lines = ["First line.", "Second line.", "", "Another paragraph."]
    rows = list(call(format, "rows_of_text", enumerate(lines, 1)))
    numbers = [number for number, _ in rows]
    if numbers != sorted(numbers) or not set(numbers) <= set(range(1, len(lines) + 1)):
        yield f"`rows_of_text` must number its rows by the lines where they begin, counted from 1, not {numbers}"
    for _, row in rows:
        if isinstance(why := _read(format, row), str):
            yield f"`read` refuses a row of `rows_of_text`: {why}"


def _shown(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Readers


def check_reader(cls: type[Reader], path: Path) -> None:
    """Raise ConformanceError listing every rule that a reader breaks (see the table in `alignkit.testing`).

    Args:
        path: A file that it reads, with at least one row.
    """
    name = check_registered("reader", cls)
    if problems := list(_reader_problems(cls, path)):
        raise ConformanceError("\n".join(f"{name}: {problem}" for problem in problems))


def _reader_problems(cls: type[Reader], path: Path) -> Iterator[str]:
    before = path.read_bytes()
    first, second = ([(number, str(row)) for number, row in cls().rows(path)] for _ in range(2))
    numbers = [number for number, _ in first]
    if not first:
        yield "`rows`: there is none: pass another file as `path`"
    if not all(isinstance(number, int) and number > 0 for number in numbers) or sorted(set(numbers)) != numbers:
        yield f"`rows`: number them upward from 1, so that an error can name a row; these are {numbers[:5]}"
    if first != second:
        yield "`rows`: a second read has other rows"
    digests = {cls().digest(path) for _ in range(2)}
    if len(digests) > 1 or not all(isinstance(digest, str) and digest for digest in digests):
        yield f"`digest`: return the same text for the same rows, not {sorted(map(repr, digests))}"
    try:
        json.dumps(dict(cls().facts(path)), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"`facts`: they must be JSON, because stage.json keeps them: {error}"
    if path.read_bytes() != before:
        yield "it changes the file that it reads"
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as folder:
        strange = Path(folder) / f"strange{path.suffix}"
        for what, content in (("an empty file", b""), ("a file of something else", b"\x00\xff no such file \n" * 99)):
            strange.write_bytes(content)
            try:
                rows = [row for _, row in cls().rows(strange) if not isinstance(row, BadRow)]
            except DataError:
                continue
            except Exception as error:
                yield f"`rows`: {what} raises {type(error).__name__}: raise DataError with the path, and what to do"
                continue
            if rows:
                yield f"`rows`: {what} has {len(rows)} rows"


# Sources of base models


def check_model_source(source: Callable[..., Path | str], *, cache: Path | None = None, path: str = "") -> None:
    """Raise ConformanceError if a source of base models breaks a rule (see the table in `alignkit.testing`).

    The model is loaded on the CPU in float32.

    Args:
        source: The function that is registered.
        cache: The folder that the source gets; default: an empty one, so that it makes or downloads the model again.
        path: What a recipe writes after `NAME://`, for a source that takes it.
    """
    name = check_registered("model", source)
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as empty:
        try:
            problem = _source_problem(Registration(name, source), cache or Path(empty), *filter(None, [path]))
        except (AlignkitError, OSError, ValueError) as error:  # what a run would report
            problem = str(error)
    if problem:
        raise ConformanceError(f"{name}: {problem}")


def _source_problem(registration: Registration, cache: Path, *path: str) -> str:
    """The first rule that the source breaks, or an empty text."""
    folder = made_model(registration, cache, *path)
    if not Path(folder).is_dir():
        return f"it must return a folder, and '{folder}' is none"
    if cache.resolve() not in Path(folder).resolve().parents:
        return f"it must make the model below the cache folder that it is given, not in '{folder}'"
    before = _files(Path(folder))
    SharedModel(SPEC.model_copy(update={"base": folder}), folder)
    again = made_model(registration, cache, *path)
    if again != folder:
        return f"a second call returns another folder, '{again}', instead of the one that exists"
    if _files(Path(folder)) != before:
        return "a second call writes files again, although the folder is complete"
    return ""


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of every file."""
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))}
