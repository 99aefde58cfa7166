"""Reads the plugins that a recipe names, with their options: `name`, or `name: {options}`.

References in options are found by the marks in their annotations, and replaced with the objects that they name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from alignkit.options import Options, Ref, options_of_call
from alignkit.recipe.advice import advice, common_name
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import path_text, shown
from alignkit.recipe.schema import allowed_keys
from alignkit.recipe.scope import Scope
from alignkit.recipe.validation import Model, validate
from alignkit.registry import Component, Registration, Unresolved
from alignkit.settings import OptimizerOptions

OWN = ("adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "constant", "linear", "cosine")


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


def options_of(registration: Registration, kind: str = "") -> type[Options]:
    """Return the model of a plugin's options. kind: an optimizer has those of alignkit itself, too."""
    implementation = registration.implementation
    options: type[Options] = getattr(implementation, "Options", Options)
    if callable(implementation) and not hasattr(implementation, "Options"):
        options = options_of_call(implementation)
    if kind == "optimizer":
        return create_model("Options", __base__=(options, OptimizerOptions))
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
        options = allowed_keys(options_of(scope.registry.get(kind, name), kind))
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
        return scope.registry.get("reward", named.name, scope.declared)
    except Unresolved as error:
        help = error.help
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


def read_named(kind: str, raw: Any, keys: Keys, scope: Scope) -> Component | str | None:
    """Return an optimizer or a schedule. alignkit's own stay text, and need no torch."""
    return raw if isinstance(raw, str) and raw in OWN else read_component(kind, raw, keys, scope)


def with_options(
    kind: str, name: str, registration: Registration, raw: Any, keys: Keys, scope: Scope
) -> Component | None:
    """Return a plugin with its options, after validating them and replacing their references."""
    if not isinstance(raw, dict):
        scope.problems.error(keys, f"{path_text(keys)}: expected a mapping of options, got {shown(raw)}")
        return None
    before = len(scope.problems)
    options = read_options(options_of(registration, kind), raw, keys, scope)
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


def replace_references(options: Model, keys: Keys, scope: Scope) -> Model:
    """Return validated options with every reference checked and replaced with the object that it refers to."""
    changes = {}
    for name, info in type(options).model_fields.items():
        value, place = getattr(options, name), (*keys, info.alias or name)
        if isinstance(value, Path):
            new: Any = scope.paths.option(value, place)
        else:
            new = _follow(_annotation(info), value, place, scope)
        if new is not value:
            changes[name] = new
    return options.model_copy(update=changes) if changes else options


def check_references(model: type[BaseModel], raw: Any, keys: Keys, scope: Scope) -> None:
    """Check the references in options that failed validation, so that one run reports every problem."""
    for name, info in model.model_fields.items():
        key = info.alias or name
        if not isinstance(raw, dict) or key not in raw:
            continue
        value, place = raw[key], (*keys, key)
        if Path not in (info.annotation, *get_args(info.annotation)):
            _follow(_annotation(info), value, place, scope)
        elif isinstance(value, str) and place not in scope.failed:
            scope.paths.option(Path(value), place)


def _annotation(info: FieldInfo) -> Any:
    """Return a field's annotation including its marks, which pydantic stores separately."""
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _follow(annotation: Any, value: Any, keys: Keys, scope: Scope) -> Any:
    """Return a value with its references replaced, or the value itself if it has none."""
    if value is None:
        return None
    args = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _follow_annotated(args, value, keys, scope)
    if get_origin(annotation) in (Union, UnionType):
        return _follow(_fitting(args, value), value, keys, scope)
    if isinstance(value, Options):
        return replace_references(value, keys, scope)
    if isinstance(annotation, type) and issubclass(annotation, Options):
        check_references(annotation, value, keys, scope)
        return value
    if isinstance(value, Mapping) and len(args) == 2:
        new = {key: _follow(args[1], item, (*keys, key), scope) for key, item in value.items()}
        return new if any(new[key] is not value[key] for key in new) else value
    if isinstance(value, list | tuple) and args:
        return _follow_sequence(args, value, keys, scope)
    return value


def _follow_annotated(args: Sequence[Any], value: Any, keys: Keys, scope: Scope) -> Any:
    ref = next((mark for mark in args[1:] if isinstance(mark, Ref)), None)
    if ref is None:
        return _follow(args[0], value, keys, scope)
    return value if keys in scope.failed else scope.resolvers[ref.kind](value, keys, scope)


def _follow_sequence(args: Sequence[Any], value: Sequence[Any], keys: Keys, scope: Scope) -> Sequence[Any]:
    expanded = [(i, item) for i, item in enumerate(value)]
    if any(get_origin(arm) is Annotated for arm in (args[0], *get_args(args[0]))):
        expanded = expand_all(value, scope)
    fixed = isinstance(value, tuple) and args[-1] is not Ellipsis  # tuple[A, B], not tuple[A, ...] or list[A]
    kinds = args if fixed else [args[0]] * len(expanded)
    items = [_follow(kind, item, (*keys, i), scope) for kind, (i, item) in zip(kinds, expanded, strict=False)]
    same = len(items) == len(value) and all(a is b for a, b in zip(items, value, strict=True))
    return value if same else type(value)(items)  # type: ignore[call-arg]


def expand_all(items: Sequence[Any], scope: Scope) -> list[tuple[int, Any]]:
    """Return the items of a list with their index; `NAME@all` becomes one item for each of its stages."""
    expanded: list[tuple[int, Any]] = []
    for index, item in enumerate(items):
        stages = scope.all_rounds(item)
        expanded += [(index, part) for part in ([item] if stages is None else stages)]
    return expanded


def _fitting(arms: Sequence[Any], value: Any) -> Any:
    """Return the arm of a union that a validated value belongs to; plain types first, `Any` references last."""
    for arm in arms:
        if get_origin(arm) is Literal and value in get_args(arm):
            return arm
        if get_origin(arm) is not Annotated and _belongs(value, get_origin(arm) or arm):
            return arm
    marked = [arm for arm in arms if get_origin(arm) is Annotated]
    for arm in marked:
        inner = get_args(arm)[0]
        if _belongs(value, get_origin(inner) or inner):
            return arm
    return marked[-1] if marked else None


def _belongs(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or is the plain data of an options object."""
    if kind is Any or not isinstance(kind, type):
        return False
    return isinstance(value, kind) or (isinstance(value, dict) and issubclass(kind, Options))
