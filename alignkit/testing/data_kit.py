"""The rules of what reads: formats of rows, readers of files, and sources of base models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.contract.formats import Format, checked_groups
from alignkit.contract.kinds import Reader
from alignkit.data.group import Group
from alignkit.errors import BadRow, PluginError
from alignkit.host.calls import attributed_to, call, create
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component, Registration
from alignkit.io.text import is_dir, is_file
from alignkit.models.shared_model import SharedModel
from alignkit.testing.surroundings import Surroundings, conform, why_not_stored
from alignkit.testing.tiny import SPEC

EXTRA = "unrelated column"
ODD_ROWS: tuple[Any, ...] = (None, 3, True, [], ["x"], {}, {EXTRA: "x"})

LOST = "`rest` returns the columns that a format does not use, for the group's `meta`"
STRICT = (
    "a file whose first row matches two formats is refused, so `matches` must look for columns "
    "that others lack"
)


# Formats


def check_format(
    cls: type[Format],
    options: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[Any] | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a format breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: Good rows to read in addition to `example`.
    """
    conform("format", cls, options, partial(_check_format, rows=rows or []))


def _check_format(around: Surroundings, component: Component, rows: Sequence[Any]) -> None:
    format, examples = create(component), list(rows)
    if format.example or not rows:
        try:
            examples.append(json.loads(format.example))
        except ValueError as error:
            around.problems.append(
                f"`example` must be a row as JSON, for errors and documentation: {error}"
            )
    if _recognizes(type(format)):
        _check_matches(around, format, examples)
    for row in examples:
        _check_row(around, format, row)
    for row in ODD_ROWS:
        if isinstance(_read(format, row), list):
            around.problems.append(
                f"`read` makes a group of {_shown(row)}: raise BadRow for columns that are missing"
            )


def _read(format: Format, row: Any) -> list[Group] | str:
    """The groups of a row as a run reads it, or why it is bad. Raises PluginError for any other
    exception.
    """
    try:
        with attributed_to(format, "read"):
            try:
                return checked_groups(format, row)
            except BadRow as error:
                return str(error)
    except PluginError as error:
        raise PluginError(
            f"{error}, for {_shown(row)}; a row that cannot be read must raise BadRow"
        ) from error


def _recognizes(cls: type[Format]) -> bool:
    """Whether a format is ever recognized; otherwise the recipe must name it."""
    return getattr(cls.matches, "__func__", None) is not getattr(Format.matches, "__func__", None)


def _check_matches(around: Surroundings, format: Format, examples: Sequence[Any]) -> None:
    """Check that the format recognizes its own rows, and only those."""
    for row in examples:
        if not call(format, "matches", row):
            around.problems.append(f"`matches` does not recognize {_shown(row)}")
    for row in ODD_ROWS:
        if call(format, "matches", row):
            around.problems.append(f"`matches` recognizes {_shown(row)}: it must be strict")
    for other in plugins().registrations("format"):
        theirs = other.implementation
        if theirs is type(format) or not theirs.example or not _recognizes(theirs):
            continue
        if call(format, "matches", json.loads(theirs.example)):
            around.problems.append(
                f"`matches` also recognizes the example of '{other.name}': {STRICT}"
            )


def _check_row(around: Surroundings, format: Format, row: Any) -> None:
    """Check a row that must be read, and its variants: every column is used, kept or refused."""
    problems = around.problems
    with problems.unchanged(f"`read` changes the row {_shown(row)}", row):
        groups = _read(format, row)
    if isinstance(groups, str):
        problems.append(f"`read` refuses {_shown(row)}: {groups}")
    if isinstance(groups, str) or problems:
        return
    if not groups:
        problems.append(
            f"`groups` returns no group for {_shown(row)}: raise BadRow with the reason"
        )
    if _read(format, row) != groups:
        problems.append(f"`read` makes other groups of {_shown(row)} when it reads it again")
    for group in groups:
        if why := why_not_stored(group):
            problems.append(f"`read` makes a group that {why}")
    if not isinstance(row, Mapping):
        return
    for name in row:
        if _read(format, {key: value for key, value in row.items() if key != name}) == groups:
            problems.append(f"column '{name}' of {_shown(row)} changes nothing and is lost: {LOST}")
        _read(format, {**row, name: 3})  # a format may refuse it
    kept = _read(format, {**row, EXTRA: "kept"})
    if isinstance(kept, list) and not all(group.meta.get(EXTRA) == "kept" for group in kept):
        problems.append(f"a further column is not in the group's `meta`: {LOST}")


def _shown(row: Any) -> str:
    return f"{json.dumps(row, ensure_ascii=False, default=repr):.80}"


# Readers


def check_reader(cls: type[Reader], path: Path) -> None:
    """Raise ConformanceError listing every rule that a reader breaks (see the table in
    `alignkit.testing`).

    Args:
        path: A file that it reads, with at least one row.
    """
    conform("reader", cls, None, partial(_check_reader, cls=cls, path=path))


def _check_reader(
    around: Surroundings, component: Component, cls: type[Reader], path: Path
) -> None:
    problems = around.problems
    first, second = list(cls().rows(path)), list(cls().rows(path))
    numbers = [number for number, _ in first]
    if not first:
        problems.append("`rows`: there is none: pass another file as `path`")
    if numbers != sorted({*numbers} - {0}):
        problems.append(
            "`rows`: number them upward from 1, so that an error can name a row; these are "
            f"{numbers[:5]}"
        )
    if repr(first) != repr(second):
        problems.append("`rows`: a second read has other rows")


# Sources of base models


def check_model_source(
    source: Callable[..., Path | str], *, cache: Path | None = None, path: str = ""
) -> None:
    """Raise ConformanceError if a source of base models breaks a rule (see the table in
    `alignkit.testing`).

    The model is loaded on the CPU in float32.

    Args:
        source: The function that is registered.
        cache: The folder that the source gets; default: an empty one, so that it makes or downloads
            the model again.
        path: What a recipe writes after `NAME://`, for a source that takes it.
    """
    conform("model", source, None, partial(_check_source, cache=cache, path=path))


def _check_source(
    around: Surroundings, component: Component, cache: Path | None, path: str
) -> None:
    make = partial(
        _made_model, component.registration, cache or around.cache, *filter(None, [path])
    )
    folder = make()
    SharedModel(SPEC.model_copy(update={"base": folder}), folder)
    if (again := make()) != folder:
        around.problems.append(
            f"a second call returns '{again}' instead of '{folder}', which exists"
        )


def _made_model(registration: Registration, cache: Path, *path: str) -> str:
    """The folder that a model source makes, or a hub id."""
    with attributed_to(registration.implementation, "", registration.label):
        source = str(registration.implementation(cache, *path))
        hub = source.count("/") == 1 and not is_dir(source) and not Path(source).is_absolute()
        if not hub and not is_file(Path(source) / "config.json"):
            text = (
                "return a model's folder, which has a config.json, or a hub id, not "
                f"{source!r:.200}"
            )
            raise PluginError(text)
    return source
