"""Finds references in options by the marks in their annotations, and replaces them with the objects they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alignkit.options import Options, Ref
from alignkit.recipe.document import Keys
from alignkit.recipe.scope import Scope
from alignkit.recipe.validation import Model


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
        if not _is_path(info.annotation):
            _follow(_annotation(info), value, place, scope)
        elif isinstance(value, str) and place not in scope.failed:
            scope.paths.option(Path(value), place)


def _annotation(info: FieldInfo) -> Any:
    """Return a field's annotation including its marks, which pydantic stores separately."""
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _is_path(annotation: Any) -> bool:
    return annotation is Path or (get_origin(annotation) in (Union, UnionType) and Path in get_args(annotation))


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
        return _follow_mapping(args[1], value, keys, scope)
    if isinstance(value, list | tuple) and args:
        return _follow_sequence(args, value, keys, scope)
    return value


def _follow_annotated(args: Sequence[Any], value: Any, keys: Keys, scope: Scope) -> Any:
    ref = next((mark for mark in args[1:] if isinstance(mark, Ref)), None)
    if ref is None:
        return _follow(args[0], value, keys, scope)
    return value if keys in scope.failed else scope.resolvers[ref.kind](value, keys, scope)


def _follow_mapping(annotation: Any, value: Mapping[str, Any], keys: Keys, scope: Scope) -> Mapping[str, Any]:
    new = {key: _follow(annotation, item, (*keys, key), scope) for key, item in value.items()}
    return new if any(new[key] is not value[key] for key in new) else value


def _follow_sequence(args: Sequence[Any], value: Sequence[Any], keys: Keys, scope: Scope) -> Sequence[Any]:
    expanded = [(i, item) for i, item in enumerate(value)]
    if get_origin(args[0]) is Annotated:
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
