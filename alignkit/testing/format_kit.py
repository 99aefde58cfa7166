"""The rules of data formats: rows are read whole or refused with a reason, and recognized by one format only."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from alignkit.calls import blame
from alignkit.data.group import Group
from alignkit.data.sources import checked_groups
from alignkit.errors import BadRow, PluginError
from alignkit.formats import FOREIGN, Format
from alignkit.plugins import plugins
from alignkit.registry import Component
from alignkit.testing.purity import changed, memory_of
from alignkit.testing.surroundings import Surroundings, conform, why_not_stored

EXTRA = "unrelated column"
ODD_VALUES: tuple[Any, ...] = (None, "", "x", 3, -0.5, True, [], ["x"], [[]], {}, {"a": None}, [{"role": "user"}, 3])
ODD_ROWS: tuple[Any, ...] = (None, "", "x", 3, True, [], ["x"], {}, {EXTRA: "x"})

LOST = "`rest` returns the columns that a format does not use, for the group's `meta`"
STRICT = "a file whose first row matches two formats is refused, so `matches` must look for columns that others lack"

Read = list[Group] | str  # groups, or why the row is bad


def check_format(
    cls: type[Format], options: Mapping[str, Any] | None = None, *, rows: Sequence[Any] | None = None
) -> None:
    """Raise ConformanceError listing every rule that a format breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: Good rows to read in addition to `example`.
    """
    conform("format", cls, options, partial(_problems, rows=rows or []))


def _problems(around: Surroundings, component: Component, rows: Sequence[Any]) -> Iterator[str]:
    cls = component.registration.implementation
    with blame(cls, "__init__"):
        kit = _Kit(cls(component.options), cls)
    examples = list(rows)
    if not isinstance(cls.wants, str) or not cls.wants.strip():
        yield "`wants` must describe the format to users, in one line"
    try:
        examples[:0] = [json.loads(cls.example)] if cls.example or not rows else []
    except (TypeError, ValueError) as error:
        yield f"`example` must be a row as JSON, for errors and documentation: {error}"
        return
    yield from kit.mentioned(examples[:1] if cls.example else [])
    yield from kit.matching(examples)
    for row in examples:
        yield from kit.good(row)
    for row in ODD_ROWS:
        yield from kit.odd(row)
    if isinstance(kit.read({}), list):
        yield "`read` makes a group of an empty row: raise BadRow for columns that are missing"
    if remembered := changed(kit.memory, memory_of(kit.format)):
        yield f"`read` changed self.{remembered}: rows are read in any order, and again"
    yield from kit.texts()


class _Kit:
    """A format with its options."""

    def __init__(self, format: Format, cls: type[Format]):
        self.format, self.cls, self.memory = format, cls, memory_of(format)

    def read(self, row: Any) -> Read:
        """As a run reads a row. Raises PluginError for an exception that is no BadRow."""
        try:
            with blame(self.format, "read"):
                try:
                    groups = checked_groups(self.format, row, {})
                except BadRow as error:
                    return str(error)
        except PluginError as error:
            raise PluginError(f"{error}, for {_shown(row)}; a row that cannot be read must raise BadRow") from error
        return groups

    def mentioned(self, examples: Sequence[Any]) -> Iterator[str]:
        """The columns of the example must be in `wants`."""
        for row in examples:
            names = row if isinstance(row, Mapping) else ()
            missing = [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.cls.wants)]
            if missing:
                yield f"`wants` does not name the columns of `example`: {', '.join(map(repr, missing))}"

    def matching(self, examples: Sequence[Any]) -> Iterator[str]:
        """Whether the format recognizes its own rows, and only those."""
        if not _recognizes(self.cls):
            return
        for row in examples:
            if not self._matches(row):
                yield f"`matches` does not recognize {_shown(row)}"
        if wrong := [row for row in ODD_ROWS if not isinstance(row, str) and self._matches(row)]:
            yield f"`matches` recognizes {', '.join(map(_shown, wrong))}: it must be strict"
        for other in plugins().registry.usable("format"):
            theirs = other.implementation
            if theirs is self.cls or not theirs.example or not _recognizes(theirs):
                continue
            if self._matches(json.loads(theirs.example)):
                yield f"`matches` also recognizes the example of '{other.name}': {STRICT}"
            both = [_shown(row) for row in examples if theirs.matches(row)]
            yield from (f"`matches` and that of '{other.name}' both recognize {row}: {STRICT}" for row in both)

    def _matches(self, row: Any) -> bool:
        with blame(self.format, "matches"):
            return bool(self.cls.matches(row))

    def good(self, row: Any) -> Iterator[str]:
        """A row that must be read, and its variants."""
        before = copy.deepcopy(row)
        groups = self.read(row)
        if isinstance(groups, str):
            yield f"`read` refuses {_shown(row)}: {groups}"
            return
        if not groups:
            yield f"`groups` returns no group for {_shown(row)}: raise BadRow with the reason"
            return
        if row != before:
            yield f"`read` changes the row {_shown(before)}"
            return
        if self.read(row) != groups:
            yield f"`read` makes other groups of {_shown(row)} when it reads it again"
        for why in filter(None, map(why_not_stored, groups)):
            yield f"`read` makes a group that {why}"
        with blame(self.format, "reason"):
            reason: Any = self.format.reason(row)
        if not isinstance(reason, str):
            yield f"`reason` must return text, not {type(reason).__name__}"
        if isinstance(row, Mapping):
            yield from self._columns(row, groups)

    def _columns(self, row: Mapping[str, Any], groups: list[Group]) -> Iterator[str]:
        """Every column is used, kept or refused; an odd value is refused or read, never a crash."""
        for name in row:
            if self.read({key: value for key, value in row.items() if key != name}) == groups:
                yield f"column '{name}' of {_shown(row)} changes nothing and is lost: {LOST}"
            for value in ODD_VALUES:
                yield from self.odd({**row, name: value})
        kept = self.read({**row, EXTRA: "kept"})
        if isinstance(kept, list) and not all(group.meta.get(EXTRA) == "kept" for group in kept):
            yield f"a further column is not in the group's `meta`: {LOST}"
            return  # those below would be lost for the same reason
        for name, meaning in FOREIGN.items():
            if name not in row and self.read({**row, name: ["x"]}) == groups:
                yield f"column '{name}' ({meaning}) is lost: {LOST}, and refuses such columns"

    def odd(self, row: Any) -> list[str]:
        """A row that may be bad, but must not crash the format."""
        try:
            self.read(row)
        except PluginError as error:
            return [str(error)]
        return []

    def texts(self) -> Iterator[str]:
        """The rows of a .txt file."""
        if self.cls.rows_of_text is Format.rows_of_text and not self.cls.plain_text:
            return
        lines = ["First line.", "Second line.", "", "Another paragraph."]
        with blame(self.format, "rows_of_text"):
            rows = list(self.format.rows_of_text(enumerate(lines, 1)))
        numbers = [number for number, _ in rows]
        if numbers != sorted(numbers) or not set(numbers) <= set(range(1, len(lines) + 1)):
            yield f"`rows_of_text` must number its rows by the lines where they begin, counted from 1, not {numbers}"
        for _, row in rows:
            if isinstance(found := self.read(row), str):
                yield f"`read` refuses a row of `rows_of_text`: {found}"


def _recognizes(cls: type[Format]) -> bool:
    """Whether a format is ever recognized; otherwise the recipe must name it."""
    return getattr(cls.matches, "__func__", None) is not getattr(Format.matches, "__func__", None)


def _shown(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
