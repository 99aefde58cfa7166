"""What a plugin remembers where no checkpoint looks. A run that is killed and resumed would lose it without a word."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence, MutableSet, Set
from functools import cached_property
from typing import Any

KEPT = ("options", "state", "metrics")  # saved, or made again


def memory_of(plugin: Any) -> dict[str, Any]:
    """The values of a plugin's attributes outside `state`, to compare with those after a call.

    Of its class, only lists, mappings and sets count: nothing else there changes by accident. What is computed once
    (`cached_property`) and functions, such as a logger, are not memory.
    """
    kind = type(plugin)
    shared = {
        name: _value(value)
        for parent in reversed(kind.__mro__)
        for name, value in vars(parent).items()
        if isinstance(value, MutableMapping | MutableSequence | MutableSet) and not name.startswith("__")
    }
    own = {
        name: _value(value)
        for name, value in vars(plugin).items()
        if name not in KEPT and not callable(value) and not isinstance(getattr(kind, name, None), cached_property)
    }
    return {**shared, **own}


def numbers_of(plugin: Any) -> dict[str, Any]:
    """The attributes that are numbers or tensors: a count or an average, but no store of what was computed before."""
    kept = {name: value for name, value in vars(plugin).items() if name not in KEPT}
    return {name: _value(value) for name, value in kept.items() if isinstance(value, int | float) or _is_array(value)}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "numpy") or hasattr(value, "tobytes"))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The name of an attribute that changed; None if none did."""
    return next((name for name in sorted({*before, *after}) if before.get(name) != after.get(name)), None)


def _value(value: Any) -> Any:
    """Something that is equal for equal contents, also for tensors, arrays and NaN."""
    if hasattr(value, "numpy"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):
        return value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(repr(key), _value(below)) for key, below in value.items()]
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if isinstance(value, str | bytes | int | float | None):
        return repr(value)
    if hasattr(value, "__len__") and hasattr(value, "__iter__"):
        return [_value(below) for below in value]
    return id(value)
