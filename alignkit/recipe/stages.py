"""Reads the stages of a recipe: first the kind of each, then their options, settings and references."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alignkit.calls import blame
from alignkit.errors import PluginError, did_you_mean
from alignkit.recipe.algorithm_stage import read_algorithm
from alignkit.recipe.components import Named, find, read_component, read_options, split, with_options
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import shown
from alignkit.recipe.sampling_keys import read_engine
from alignkit.recipe.schema import Stage, allowed_keys
from alignkit.recipe.scope import BASE, Declared, Scope, StageKind, report_two_meanings
from alignkit.registry import Registration
from alignkit.settings import Settings

_KINDS: tuple[StageKind, ...] = ("algorithm", "step")
_RESERVED = (BASE, "none", "folder", "cache", "trackers")  # the last two are folders of the run


def declare(stages: Mapping[str, Any], scope: Scope) -> None:
    """Record the name and plugin of every stage, so that references can be checked."""
    for name, raw in stages.items():
        keys: Keys = ("stages", name)
        _check_name(name, keys, scope)
        if isinstance(raw, dict):
            scope.declared[name] = _declaration(name, raw, keys, scope)
        else:
            scope.declared[name] = None
            help = "write '{algorithm: NAME, ...}' or '{step: NAME, ...}'"
            scope.problems.error(keys, f"stage '{name}': expected a mapping, got {shown(raw)}", help=help)


def _check_name(name: str, keys: Keys, scope: Scope) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        message = f"stage name '{name}': expected letters, digits, '_' and '-', because it becomes a folder name"
        scope.problems.error(keys, message, at_key=True)
    elif name in scope.bases and name != BASE:
        report_two_meanings(name, keys, scope)
    elif name in _RESERVED:
        scope.problems.error(keys, f"'{name}' is reserved and cannot be a stage name", at_key=True)
    elif scope.registry.has("reward", name):
        message = f"stage '{name}' has the same name as an installed reward"
        help = f"'reward: {name}' would be ambiguous; rename the stage"
        scope.problems.error(keys, message, at_key=True, help=help)


def _declaration(name: str, raw: Mapping[str, Any], keys: Keys, scope: Scope) -> Declared | None:
    kinds = [kind for kind in _KINDS if raw.get(kind) is not None]
    if len(kinds) != 1:
        got = "has both 'algorithm' and 'step'" if kinds else "has neither 'algorithm' nor 'step'"
        help, (key, kind) = "a stage needs either 'algorithm' or 'step'", _misnamed(raw, scope)
        if not kinds:
            near = next(filter(None, (did_you_mean(key, _KINDS) for key in raw)), "")
            help = near or (f"write '{kind}: {raw[key]}' for '{key}: {raw[key]}'" if key else help)
        scope.problems.error(keys, f"stage '{name}' {got}", at_key=True, help=help)
        return None
    (kind,) = kinds
    named = split(kind, raw[kind], (*keys, kind), scope)
    if named is None:
        return None
    registration = find(kind, named.name, named.name_keys, scope, at_key=named.at_key)
    if registration is not None and kind == "algorithm":
        registration = _specialized(registration, named, scope)
    return Declared(kind, registration) if registration else None


def _misnamed(raw: Mapping[str, Any], scope: Scope) -> tuple[str, str]:
    """The key of a plugin's name in a stage that has neither kind, as in `type: dpo`, and the kind; or empty texts."""
    for key, value in raw.items():
        for kind in _KINDS:
            if key not in allowed_keys(Settings) and isinstance(value, str) and scope.registry.has(kind, value):
                return key, kind
    return "", ""


def _specialized(registration: Registration, named: Named, scope: Scope) -> Registration | None:
    """Return the variant of an algorithm that its raw options ask for."""
    kind = registration.implementation
    try:
        with blame(kind, "specialize", registration=registration):
            implementation = kind.specialize(named.options)
    except PluginError as error:
        scope.problems.error(named.name_keys, str(error), at_key=named.at_key, plugin=True)
        return None
    return replace(registration, target=implementation, file=registration.source_path)


def read_stages(stages: Mapping[str, Any], scope: Scope) -> tuple[dict[str, Stage], dict[str, list[str]]]:
    """Return the stages without problems, and the upstream stages of all stages."""
    good: dict[str, Stage] = {}
    upstream: dict[str, list[str]] = {}
    for name, raw in stages.items():
        stage_scope = replace(scope, stage=name, upstream=[], folders=[], roles=[], failed=set())
        upstream[name] = stage_scope.upstream
        stage = _read_stage(raw, ("stages", name), stage_scope)
        if stage is not None:
            good[name] = stage
    return good, upstream


def _read_stage(raw: Any, keys: Keys, scope: Scope) -> Stage | None:
    declared = scope.declared[scope.stage]
    if declared is None:
        _check_settings(raw, keys, scope)
        return None
    read = read_algorithm if declared.kind == "algorithm" else _read_step
    return read(declared, raw, keys, scope)


def _check_settings(raw: Any, keys: Keys, scope: Scope) -> None:
    """Check the settings of a stage whose algorithm is unknown, so that one run reports every problem."""
    if not isinstance(raw, dict) or raw.get("step") is not None:
        return
    misnamed, kind = _misnamed(raw, scope)
    if raw.get("algorithm") is not None or kind == "algorithm":
        others = (*_KINDS, misnamed)
        settings = {key: value for key, value in raw.items() if key not in others and value is not None}
        read_options(Settings, settings, keys, scope)


def _read_step(declared: Declared, raw: Mapping[str, Any], keys: Keys, scope: Scope) -> Stage | None:
    """Return a step. Its options are next to `step: NAME`, or inside `step: {NAME: {...}}`."""
    named, registration = raw["step"], declared.registration
    options = {key: value for key, value in raw.items() if key not in (*_KINDS, "engine")}
    engine = read_engine(raw["engine"], (*keys, "engine"), scope) if raw.get("engine") is not None else None
    if isinstance(named, dict):
        name = next(iter(named))
        for key in options:
            help = f"write all options either next to 'step: {name}' or inside 'step: {{{name}: {{...}}}}'"
            scope.problems.unknown_key((*keys, key), (), help)
        component = read_component("step", named, (*keys, "step"), scope, registration)
    else:
        component = with_options("step", named, registration, options, keys, scope)
    if component is None:
        return None
    upstream, folders, roles = tuple(scope.upstream), tuple(scope.folders), tuple(scope.roles)
    return Stage(scope.stage, "step", component, None, upstream, None, folders, roles, engine)
