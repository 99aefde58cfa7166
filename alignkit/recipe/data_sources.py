"""Reads the data entries of a recipe: files, Hub data sets and steps, each with an optional format and its options."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.sources import DataSource, DataSpec
from alignkit.errors import did_you_mean
from alignkit.options import Options
from alignkit.recipe.components import expand_all, find, options_of, with_options
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import path_text, shown
from alignkit.recipe.schema import DataKeys, allowed_keys
from alignkit.recipe.scope import BASE, Scope, check_stage
from alignkit.recipe.validation import validate
from alignkit.registry import Registration

_COMMON = allowed_keys(DataKeys)
# Entries of a training stage whose rows are drawn again and again.
_DRAWN = (("data",), ("prompts",), ("mix", "data"))
_ONLY_HUB = ("name", "revision", "data_files", "split")


def read_data(raw: Any, keys: Keys, scope: Scope) -> DataSpec | None:
    """Return the sources of a data entry, which is one source or a list of them."""
    if keys[-1] == "validation" and re.fullmatch(r"[0-9.]+%?", str(raw)):
        help = "to hold out a share of the stage's data, write it there: data: {path: FILE, validation: 0.2}"
        scope.problems.error(keys, f"{path_text(keys)}: expected other data, got the share {raw}", help=help)
        return None
    if (stages := scope.all_rounds(raw)) is not None:
        raw = stages
    if isinstance(raw, list):
        parts = expand_all(raw, scope)
        if not parts:
            scope.problems.error(keys, f"{path_text(keys)}: expected at least one data source, got an empty list")
        sources = [_read_source(part, (*keys, i), scope) for i, part in parts]
    else:
        sources = [_read_source(raw, keys, scope)]
    good = [source for source in sources if source is not None]
    if not good or len(good) < len(sources):
        return None
    _check_split(good, keys, scope)
    trains, place = _place(keys, scope)
    if any(source.weight is not None for source in good) and not (trains and place in _DRAWN):
        message = f"{path_text(keys)}: 'weight' has no effect, because every row is read once here"
        scope.problems.error(keys, message, help="remove it; 'limit' reads fewer rows")
    spec = DataSpec(tuple(good))
    scope.sources.append(spec)
    return spec


def _place(keys: Keys, scope: Scope) -> tuple[bool, tuple[str, ...]]:
    """Return whether the entry belongs to a training stage, and its keys inside the stage."""
    declared = scope.declared.get(scope.stage)
    stage = max((index for index, key in enumerate(keys) if key == "stages"), default=-2) + 2
    return declared is not None and declared.kind == "algorithm", tuple(map(str, keys[stage:]))


def _check_split(sources: Sequence[DataSource], keys: Keys, scope: Scope) -> None:
    """Report a held-out share that nothing would read, and a choice of a part that does not exist."""
    split, place = [source for source in sources if source.validation], _place(keys, scope)
    if not split:
        if any(source.part for source in sources):
            scope.problems.error(keys, f"{path_text(keys)}: 'part' needs 'validation', the share that is held out")
        if any(source.group for source in sources) and place[0]:
            scope.problems.error(keys, f"{path_text(keys)}: 'group' needs 'validation', the share that is held out")
    elif len({source.part for source in split}) > 1:
        message = f"{path_text(keys)}: 'part' must be the same in all sources with 'validation'"
        scope.problems.error(keys, message)
    elif split[0].part is None and scope.declared.get(scope.stage) and place != (True, ("data",)):
        scope.problems.error(
            keys,
            f"{path_text(keys)}: 'validation' holds out rows that nothing would read here",
            help="add 'part: training' or 'part: validation' to say which rows to read",
        )


def _read_source(raw: Any, keys: Keys, scope: Scope) -> DataSource | None:
    if isinstance(raw, str):
        return _read_name(raw, keys, scope)
    if not isinstance(raw, dict):
        expected = "expected a file, a stage, or a mapping such as {path: FILE}"
        scope.problems.error(keys, f"{path_text(keys)}: {expected}, got {shown(raw)}")
        return None
    if name := _format_name(raw):
        return _read_formatted(name, raw[name], (*keys, name), scope)
    if nested := [key for key in raw if key not in _COMMON and scope.registry.has("format", key)]:
        registration = find("format", nested[0], (*keys, nested[0]), scope, at_key=True)
        return _Source(raw, keys, scope, nested[0], registration, nested=nested[0]).read()
    return _Source(raw, keys, scope).read()


def _read_name(raw: str, keys: Keys, scope: Scope) -> DataSource | None:
    """Return the source that a string names: a file or a stage."""
    if scope.is_missing(raw):
        check_stage(raw, keys, scope)
        return None
    name = scope.resolve_name(raw)
    if name in scope.declared:
        return DataSource(stage=name) if _check_data_stage(name, keys, scope) else None
    path = scope.paths.file(name, keys, also=scope.declared)
    return DataSource(path=path) if path else None


def _format_name(raw: Mapping[str, Any]) -> str:
    """Return the format in `{FORMAT: {...}}`, or an empty string."""
    if len(raw) != 1:
        return ""
    ((name, value),) = raw.items()
    if name in _COMMON:
        return ""
    misspelled = not isinstance(value, dict) and difflib.get_close_matches(name, _COMMON, 1, 0.8)
    return "" if misspelled else name


def _read_formatted(name: str, raw: Any, keys: Keys, scope: Scope) -> DataSource | None:
    registration = find("format", name, keys, scope, at_key=True)
    if isinstance(raw, str):  # `{hh_rlhf: file.jsonl}`
        return _Source({"path": raw}, keys, scope, name, registration, path_keys=keys).read()
    if not isinstance(raw, dict):
        scope.problems.error(keys, f"{path_text(keys)}: expected a file, or a mapping with 'path', got {shown(raw)}")
        return None
    if registration is None:  # its options are unknown, but the other keys can be checked
        raw = {key: value for key, value in raw.items() if key in _COMMON}
    return _Source(raw, keys, scope, name, registration).read()


@dataclass(frozen=True)
class _Source:
    """A source written as a mapping. registration: that of its format; None if it has no format, or an unknown one.

    nested: the key that holds the options of the format, as in `{path: FILE, FORMAT: {options}}`; empty: they are keys.
    """

    raw: Mapping[str, Any]
    keys: Keys
    scope: Scope
    name: str = ""
    registration: Registration | None = None
    path_keys: Keys | None = None
    nested: str = ""

    def read(self) -> DataSource | None:
        """Return the source, or None if anything is wrong with it."""
        problems = self.scope.problems
        before = len(problems)
        model = options_of(self.registration) if self.registration else Options
        format_keys = [self.nested] if self.nested else allowed_keys(model)
        for key in self.raw:
            if key not in _COMMON and key not in format_keys:
                formats = self.scope.registry.names("format") if isinstance(self.raw[key], dict) else ()
                problems.unknown_key((*self.keys, key), [*_COMMON, *format_keys], did_you_mean(key, formats))
        common = {key: value for key, value in self.raw.items() if key in _COMMON}
        values = validate(DataKeys, common, self.keys, problems).value
        component = None
        if self.registration:
            options: Any = {key: value for key, value in self.raw.items() if key in format_keys}
            keys = self.keys
            if self.nested:
                options, keys = options[self.nested], (*keys, self.nested)
            component = with_options("format", self.name, self.registration, options, keys, self.scope)
        path, stage = self._origin()
        self._check_hub_keys()
        if values is None or (self.name and self.registration is None) or len(problems) > before:
            return None
        plain = values.model_dump(exclude={"path", "stage", "hub", "name"})
        hub = None if values.hub is None else self.scope.paths.folder_or_hub(values.hub, (*self.keys, "hub"))
        return DataSource(format=component, path=path, stage=stage, hub=hub, config=values.name, **plain)

    def _check_hub_keys(self) -> None:
        """Report keys that only a hub data set has."""
        if self.raw.get("hub") is not None:
            return
        for key in _ONLY_HUB:
            if self.raw.get(key):
                message = f"{path_text((*self.keys, key))}: only a hub data set has '{key}'"
                self.scope.problems.error((*self.keys, key), message, at_key=True, help="remove it, or set 'hub'")

    def _origin(self) -> tuple[Path | None, str | None]:
        """Return the file or stage that the data come from; neither for a Hub data set."""
        origins = [name for name in ("path", "hub", "stage") if self.raw.get(name) is not None]
        if not all(isinstance(self.raw[name], str) for name in origins):
            return None, None  # already reported
        if len(origins) != 1:
            got = " and ".join(f"'{name}'" for name in origins) or "none of them"
            message = f"{path_text(self.keys)}: expected exactly one of 'path', 'hub' and 'stage', got {got}"
            self.scope.problems.error(self.keys, message, at_key=not origins)
            return None, None
        stage = self.scope.resolve_name(self.raw.get("stage"))
        if stage is not None:
            _check_data_stage(stage, (*self.keys, "stage"), self.scope)
        path = self.raw.get("path")
        return None if path is None else self.scope.paths.file(path, self.path_keys or (*self.keys, "path")), stage


def _check_data_stage(name: str, keys: Keys, scope: Scope) -> bool:
    """Check that a stage exists and produces data."""
    if not check_stage(name, keys, scope):
        return False
    declared = scope.declared.get(name)
    if name == BASE or "@" in name or (declared and declared.kind != "step"):
        scope.problems.error(keys, f"'{name}' does not produce data; only steps do")
        return False
    return True
