"""The one way to call a plugin: an error names the plugin, its class and method, the line, and what was expected."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from alignkit.errors import AlignkitError, DataError, PluginError, memory_ran_out, no_disk, reason_of
from alignkit.registry import Component


class CallError(PluginError):
    """A mistake in a plugin's code, with plugin, stage and method in its message."""


def create(component: Component, stage: str = "") -> Any:
    """What a recipe names, made of its options."""
    registration = component.registration
    label = registration.label
    if label and stage:
        label = f"{label}, stage '{stage}'"
    with blame(registration.implementation, "__init__", label, stage):
        plugin = registration.implementation(component.options)
    plugin.called_in = label, stage
    return plugin


def call(
    plugin: Any, method: str, *args: Any, returns: Callable[[Any], str | None] = lambda value: None, **kwargs: Any
) -> Any:
    """The result of a method. Raises CallError for an exception in it, and for a result that it must not return.

    returns: says what is wrong with a result; None or empty if it is right.
    """
    with blame(plugin, method):
        value = getattr(plugin, method)(*args, **kwargs)
        wrong = returns(value)
    if wrong:
        raise mistake(plugin, method, wrong)
    return value


def remembered(plugin: Any, method: str) -> dict[str, Any]:
    """A copy of what a plugin remembers in `state`. Raises CallError, naming a method, if it is not JSON."""
    try:
        state: dict[str, Any] = json.loads(json.dumps(plugin.state))
    except (TypeError, ValueError) as error:
        raise mistake(plugin, method, f"`state` must be JSON; use float(...) ({error})") from error
    return state


def mistake(plugin: Any, method: str, text: str, label: str = "") -> CallError:
    """An error about a plugin's method. label: of a class or a function, which `create` did not make."""
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
def blame(owner: Any, method: str, label: str = "", stage: str = "") -> Iterator[None]:
    """Report an exception in a plugin's code as the plugin's.

    owner: what `create` made, or a class or a function, with the label of its registration.
    Data errors name the stage. Other errors of alignkit pass unchanged, as does running out of memory or disk space.
    """
    _, stage = getattr(owner, "called_in", (label, stage))
    torch: Any = sys.modules.get("torch")
    gradients = torch is not None and torch.is_grad_enabled()
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
        modules = [each.__module__ for each in classes if not each.__module__.startswith("alignkit.")]
        raise mistake(owner, method, reason_of(error) + line_in(error, modules), label) from error
    finally:
        changed = torch is not None and torch.is_grad_enabled() != gradients
        if changed:
            torch.set_grad_enabled(gradients)
    if changed:
        raise mistake(owner, method, "it changed torch's gradient mode; write `with torch.no_grad()`", label)


def line_in(error: BaseException, modules: Collection[str]) -> str:
    """` (file.py:12)`: the innermost line of these modules in the traceback; empty if none of their code ran."""
    frames = [
        (frame.f_globals.get("__name__"), frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
    ]
    lines = [f" ({os.path.basename(file)}:{line})" for module, file, line in frames if module in modules]
    return next(reversed(lines), "")
