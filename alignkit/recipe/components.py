"""Reads the plugins that a recipe names, with their options: `name`, or `name: {options}`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from alignkit.errors import did_you_mean
from alignkit.options import Options
from alignkit.recipe.advice import advice, common_name
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import path_text, shown
from alignkit.recipe.references import check_references, replace_references
from alignkit.recipe.schema import allowed_keys
from alignkit.recipe.scope import Scope
from alignkit.recipe.validation import Model, validate
from alignkit.registry import Component, Registration, Unresolved


@dataclass(frozen=True)
class Named:
    """A plugin's name and raw options.

    keys: path of the options. name_keys: path of the name. at_key: whether the name is a key, as in `name: {options}`.
    """

    name: str
    options: Any
    keys: Keys
    name_keys: Keys
    at_key: bool


def options_of(registration: Registration) -> type[Options]:
    """Return the model of a plugin's options."""
    options: type[Options] = getattr(registration.implementation, "Options", Options)
    return options


def split(kind: str, raw: Any, keys: Keys, scope: Scope) -> Named | None:
    """Split `name` or `name: {options}`."""
    if isinstance(raw, str):
        return Named(raw, {}, (*keys, raw), keys, at_key=False)
    if isinstance(raw, dict) and len(raw) == 1:
        ((name, options),) = raw.items()
        return Named(name, {} if options is None else options, (*keys, name), (*keys, name), at_key=True)
    if isinstance(raw, dict) and len(known := [name for name in raw if scope.registry.has(kind, name)]) == 1:
        return _with_misplaced(kind, known[0], raw, keys, scope)
    got = f"{len(raw)} names" if isinstance(raw, dict) else shown(raw)
    article = "an" if kind[0] in "aeiou" else "a"
    message = f"{path_text(keys)}: expected the name of {article} {kind}, or one 'name: {{options}}', got {got}"
    scope.problems.error(keys, message)
    return None


def _with_misplaced(kind: str, name: str, raw: Mapping[str, Any], keys: Keys, scope: Scope) -> Named:
    """A plugin next to which options were written; each is a problem, with the path at which it belongs."""
    try:
        options = allowed_keys(options_of(scope.registry.get(kind, name)))
    except Unresolved:  # `find` reports it
        options = []
    for key in raw:
        if key != name:
            near = difflib.get_close_matches(common_name(str(key)), options, 1)
            help = f"write {path_text((*keys, name, near[0]))}" if near else advice(str(key), options)
            scope.problems.error((*keys, key), f"unknown key '{key}' next to '{name}'", at_key=True, help=help)
    written = {} if raw[name] is None else raw[name]
    return Named(name, written, (*keys, name), (*keys, name), at_key=True)


def find(kind: str, name: str, keys: Keys, scope: Scope, *, at_key: bool = False) -> Registration | None:
    """Return the plugin of this name, or report a problem."""
    try:
        return scope.registry.get(kind, name)
    except Unresolved as error:
        scope.problems.error(keys, error.message, at_key=at_key, help=error.help, plugin=error.broken)
        return None


def find_reward(named: Named, scope: Scope) -> Registration | None:
    """Return the reward plugin of this name. Suggestions include stages, because a reward can be a stage."""
    try:
        return scope.registry.get("reward", named.name)
    except Unresolved as error:
        help = did_you_mean(named.name, [*scope.declared, *scope.registry.names("reward")]) or error.help
        if help.startswith("installed"):
            first, *rest = help.splitlines()
            help = "\n".join([f"{first}; or name a stage that trains a reward model", *rest])
        scope.problems.error(named.name_keys, error.message, at_key=named.at_key, help=help, plugin=error.broken)
        return None


def read_component(
    kind: str, raw: Any, keys: Keys, scope: Scope, registration: Registration | None = None
) -> Component | None:
    """Return the named plugin with its options. registration: the plugin, if it is already known."""
    named = split(kind, raw, keys, scope)
    if named is None:
        return None
    registration = registration or find(kind, named.name, named.name_keys, scope, at_key=named.at_key)
    if registration is None:
        return None
    return with_options(kind, named.name, registration, named.options, named.keys, scope)


def with_options(
    kind: str, name: str, registration: Registration, raw: Any, keys: Keys, scope: Scope
) -> Component | None:
    """Return a plugin with its options, after validating them and replacing their references."""
    if not isinstance(raw, dict):
        scope.problems.error(keys, f"{path_text(keys)}: expected a mapping of options, got {shown(raw)}")
        return None
    before = len(scope.problems)
    options = read_options(options_of(registration), raw, keys, scope)
    return None if options is None or len(scope.problems) > before else Component(kind, name, registration, options)


def read_options(
    model: type[Model],
    raw: Any,
    keys: Keys,
    scope: Scope,
    *,
    hint: Callable[[str], str] = lambda key: "",
    hidden: Collection[str] = (),
) -> Model | None:
    """Validate options and replace their references. If validation fails, still check the references."""
    checked = validate(model, raw, keys, scope.problems, hint=hint, hidden=hidden)
    if checked.value is None:
        scope.failed.update(checked.failed)
        check_references(model, raw, keys, scope)
        return None
    return replace_references(checked.value, keys, scope)
