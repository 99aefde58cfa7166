"""The one way to call a plugin: an error names the plugin, its class and method, the line, and what was expected."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from alignkit.errors import AlignkitError, DataError, PluginError, disk_is_full, memory_ran_out, reason_of
from alignkit.registry import Component, Registration


class CallError(PluginError):
    """A mistake in a plugin's code, with plugin, stage and method in its message."""


def create(component: Component, stage: str = "") -> Any:
    """What a recipe names, made of its options."""
    registration = component.registration
    with blame(registration.implementation, "__init__", registration=registration, stage=stage):
        plugin = registration.implementation(component.options)
    plugin.called_in = (label_of(registration, stage), stage)
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


def mistake(plugin: Any, method: str, text: str) -> CallError:
    """An error about what a plugin's method has returned."""
    return _error(label_of(plugin), plugin, method, text)


def label_of(plugin: Any, stage: str = "") -> str:
    """`plugin 'x' (dist 0.1), stage 'align'`, of a registration or of what `create` made; empty without a plugin."""
    if not isinstance(plugin, Registration):
        label: str = getattr(plugin, "called_in", ("", ""))[0]
        return label
    if not plugin.plugin:
        return ""
    origin = f" ({plugin.origin})" if plugin.distribution not in ("", plugin.plugin) else ""
    return f"plugin '{plugin.plugin}'{origin}" + (f", stage '{stage}'" if stage else "")


@contextmanager
def blame(owner: Any, method: str, *, registration: Registration | None = None, stage: str = "") -> Iterator[None]:
    """Report an exception in a plugin's code as the plugin's.

    owner: what `create` made, or a class or a function with its registration.
    Data errors name the stage. Other errors of alignkit pass unchanged, as does running out of memory or disk space.
    """
    label, stage = getattr(owner, "called_in", (label_of(registration, stage), stage))
    torch: Any = sys.modules.get("torch")
    gradients = torch is not None and torch.is_grad_enabled()
    try:
        yield
    except (CallError, KeyboardInterrupt, GeneratorExit):  # GeneratorExit closes a generator of ours
        raise
    except DataError as error:
        prefix = f"stage '{stage}': "
        if not stage or str(error).startswith(prefix):  # a part within a part named it
            raise
        raise DataError(prefix + str(error), option=error.option) from error
    except AlignkitError as error:
        if not isinstance(error, PluginError):
            raise
        raise _error(label, owner, method, str(error) + line_in(error, owner)) from error
    except BaseException as error:
        if memory_ran_out(error) or disk_is_full(error) or getattr(error, "errno", None) == errno.EROFS:
            raise
        raise _error(label, owner, method, words(error) + line_in(error, owner)) from error
    finally:
        changed = torch is not None and torch.is_grad_enabled() != gradients
        if changed:
            torch.set_grad_enabled(gradients)
    if changed:
        text = "it changed torch's gradient mode; `with torch.no_grad()` changes the mode back"
        raise _error(label, owner, method, text)


def _error(label: str, owner: Any, method: str, text: str) -> CallError:
    name = owner.__name__ if callable(owner) and hasattr(owner, "__name__") else type(owner).__name__
    place = f"{name}.{method}" if method and label else method or name
    return CallError(f"{label}{', ' if label else ''}in `{place}`: {text}")


def words(error: BaseException) -> str:
    """`KeyError: 'advantage'`, on one line."""
    if isinstance(error, SystemExit):
        return f"it called exit({'' if error.code is None else error.code})"
    return reason_of(error)


def line_in(error: BaseException, owner: Any) -> str:
    """` (file.py:12)`: the innermost line of the owner's own code in the traceback, else where its class begins."""
    classes = getattr(owner, "__mro__", None) or ((owner,) if callable(owner) else type(owner).__mro__)
    modules = [each.__module__ for each in classes if not each.__module__.startswith("alignkit.")]
    files = [os.path.abspath(file) for name in modules if (file := getattr(sys.modules.get(name), "__file__", None))]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [(frame.filename, frame.lineno) for frame in frames if os.path.abspath(frame.filename) in files]
    with suppress(OSError, TypeError, IndexError):  # there is no source
        file, line = inside[-1] if inside else (files[0], inspect.getsourcelines(classes[0])[1])
        return f" ({os.path.basename(file)}:{line})"
    return ""
