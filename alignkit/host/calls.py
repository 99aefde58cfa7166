"""The one way to call a plugin: an error names the plugin, its class and method, the line, and what
was expected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from inspect import getattr_static
from traceback import walk_tb
from typing import Any

from alignkit.errors import (
    AlignkitError,
    DataError,
    PluginError,
    memory_ran_out,
    no_disk,
    reason_of,
)
from alignkit.host.registry import Component


class CallError(PluginError):
    """A mistake in a plugin's code, with plugin, stage and method in its message."""


def create(component: Component, stage: str = "") -> Any:
    """What a recipe names, made of its options."""
    registration = component.registration
    label = registration.label
    if label and stage:
        label = f"{label}, stage '{stage}'"
    with attributed_to(registration.implementation, "__init__", label, stage):
        plugin = registration.implementation(component.options)
    plugin.called_in = label, stage
    return plugin


def call(
    plugin: Any, method: str, *args: Any, returns: Callable[[Any], object] = lambda value: None
) -> Any:
    """The result of a method. Raises CallError for an exception in it, and for a result that it
    must not return.

    returns: raises for a result that is wrong.
    """
    with attributed_to(plugin, method):
        value = getattr(plugin, method)(*args)
        returns(value)
    return value


def remembered(plugin: Any, method: str, name: str = "state") -> dict[str, Any]:
    """A copy of an attribute that a method changes, such as `state`. Raises CallError if it is not
    JSON.
    """
    try:
        values: dict[str, Any] = json.loads(json.dumps(getattr(plugin, name)))
    except (TypeError, ValueError) as error:
        raise mistake(plugin, method, f"`{name}` must be JSON; use float(...) ({error})") from error
    return values


def mistake(plugin: Any, method: str, text: str, label: str = "") -> CallError:
    """An error about a plugin's method. label: of a class or a function, which `create` did not
    make.
    """
    label = label_of(plugin) or label
    place = getattr(plugin, "__name__", type(plugin).__name__)
    if method:
        place = f"{place}.{method}"
    return CallError(f"{label}, in `{place}`: {text}".removeprefix(", "))


def label_of(plugin: Any) -> str:
    """`plugin 'x' (dist 0.1), stage 'align'`, of what `create` made; empty of anything else."""
    label: str = getattr(plugin, "called_in", ("", ""))[0]
    return label


@contextmanager
def attributed_to(owner: Any, method: str, label: str = "", stage: str = "") -> Iterator[None]:
    """Report an exception in a plugin's code as the plugin's.

    owner: what `create` made, or a class or a function, with the label of its registration. Data
    errors name the stage. Other errors of alignkit pass unchanged, as does running out of memory or
    disk space.
    """
    _, stage = getattr(owner, "called_in", (label, stage))
    try:
        yield
    except CallError:
        raise
    except DataError as error:
        prefix = f"stage '{stage}': "
        if not stage or str(error).startswith(prefix):  # a part within a part named it
            raise
        raise DataError(prefix + str(error), option=error.option) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, AlignkitError) and not isinstance(error, PluginError):
            raise
        if memory_ran_out(error) or no_disk(error):
            raise
        classes = getattr(owner, "__mro__", (owner,) if callable(owner) else type(owner).__mro__)
        modules = [
            each.__module__ for each in classes if not each.__module__.startswith("alignkit.")
        ]
        where = line_in(error, modules) or first_line(getattr_static(owner, method, None), modules)
        raise mistake(owner, method, reason_of(error) + where, label) from error


def line_in(error: BaseException, modules: Collection[str]) -> str:
    """` (file.py:12)`: the innermost line of these modules in the traceback; empty if none of their
    code ran.
    """
    innermost = ""
    for frame, line in walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") in modules:
            innermost = f" ({os.path.basename(frame.f_code.co_filename)}:{line})"
    return innermost


def first_line(method: Any, modules: Collection[str]) -> str:
    """` (file.py:12)`: where a method of these modules begins, whose result is wrong; else empty."""
    code = getattr(method, "__code__", None)
    if code is None or method.__module__ not in modules:
        return ""
    return f" ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
