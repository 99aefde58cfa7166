"""Errors in plugins, as their authors need them: which plugin, class and method, where, and what was expected."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.errors import AlignkitError, DataError, PluginError, disk_is_full, memory_ran_out

if TYPE_CHECKING:
    from alignkit.data.group import Group
    from alignkit.registry import Registration

OURS = "alignkit"  # the distribution whose errors are not a stranger's


@dataclass(frozen=True)
class Author:
    """The plugin whose code runs, and the stage. Errors begin with them: `plugin 'x' (dist 0.1), stage 'align'`."""

    plugin: str
    stage: str = ""

    def __str__(self) -> str:
        return f"{self.plugin}, stage '{self.stage}'" if self.stage else self.plugin

    def error(self, method: str, text: str) -> AuthorError:
        """An error in one of the author's methods: `Class.method`."""
        place = f"{self}, in `{method}`" if self.plugin else f"in `{method.rpartition('.')[2]}`"
        return AuthorError(f"{place}: {text}")


class AuthorError(PluginError):
    """A mistake in an author's code, with plugin, stage and method in its message."""


def author_of(registration: Registration, stage: str = "") -> Author:
    """The author of a registered name: `plugin 'x' (dist 0.1)`. A class without a plugin has no author's name."""
    if not registration.plugin:
        return Author("", stage)
    origin = f" ({registration.origin})" if registration.distribution not in ("", registration.plugin) else ""
    return Author(f"plugin '{registration.plugin}'{origin}", stage)


# What a conformance kit checks around each call of a plugin. A run checks nothing.
Watch = Callable[[Author, str, object], AbstractContextManager[None]]
watching_calls: ContextVar[Watch | None] = ContextVar("watching_calls", default=None)


@contextmanager
def calling(author: Author, method: str, owner: object, groups: Sequence[Group] = ()) -> Iterator[None]:
    """Report an exception of an author's method as the plugin's, with the line in the author's file.

    Data errors name the stage. Other errors of alignkit pass unchanged, as does running out of memory or disk space.
    groups: what the method is given. It must not change their prompts and columns, which later iterations read again.
    """
    watch, before = watching_calls.get(), [_contents(group) for group in groups]
    with watch(author, full_name(method, owner), owner) if watch else nullcontext(), _blamed(author, method, owner):
        yield
    for group, (prompt, columns) in zip(groups, before, strict=True):
        if (now := _contents(group)) != (prompt, columns):
            changed = [key for key in {**columns, **now[1]} if columns.get(key) != now[1].get(key)]
            what = f"column '{changed[0]}'" if changed else "messages"
            text = f"it changed the {what} of a prompt, which later iterations read again; change a copy instead"
            raise author.error(full_name(method, owner), text)


def _contents(group: Group) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """The messages and columns of a group, to compare with those after a call; only lists and dicts take time."""
    columns = {name: repr(x) if isinstance(x, list | dict) else x for name, x in group.meta.items()}
    return [tuple(message.items()) for message in group.prompt], columns


@contextmanager
def _blamed(author: Author, method: str, owner: object) -> Iterator[None]:
    try:
        yield
    except AuthorError:
        raise
    except DataError as error:
        prefix = f"stage '{author.stage}': "
        if not author.stage or str(error).startswith(prefix):  # a part within a part said it
            raise
        text = f"{prefix}{error}"
        raise DataError(text, option=error.option) from error
    except PluginError as error:
        raise author.error(full_name(method, owner), f"{error}{_place(error, owner)}") from error
    except (AlignkitError, KeyboardInterrupt, GeneratorExit):  # GeneratorExit closes a generator of ours
        raise
    except BaseException as error:
        if _of_the_machine(error):
            raise
        raise author.error(full_name(method, owner), f"{_words(error)}{_place(error, owner)}") from error


def made(component: Any, stage: str = "") -> tuple[Any, Author]:
    """What a recipe's component makes of its options, and its author. Whoever asks first gets what was `borrowed`."""
    registration = component.registration
    author = author_of(registration, stage)
    if component.unused:
        return component.unused.pop(), author
    with calling(author, "__init__", registration.implementation):
        return registration.implementation(component.options), author


@contextmanager
def borrowed(component: Any, stage: str = "") -> Iterator[tuple[Any, Author]]:
    """`made` for a check. The stage will get the same algorithm, without anything that the check leaves in it."""
    plugin, author = made(component, stage)
    if component.kind != "algorithm":  # others may keep what they have read, and files change
        yield plugin, author
        return
    try:
        before = copy.deepcopy(vars(plugin))
    except Exception:  # such as an open file: the stage makes one of its own
        yield plugin, author
        return
    yield plugin, author
    vars(plugin).clear()
    vars(plugin).update(before)
    component.unused.append(plugin)


@contextmanager
def noting(position: str) -> Iterator[None]:
    """Let an error say where the run was: `in iteration 3 of 10`."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        error.add_note(position)
        raise


@contextmanager
def blaming(
    registrations: Callable[[], Iterable[Registration]], stage: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Report an exception in a stranger's plugin as the plugin's; `sys.exit()` is one.

    registrations: what plugins provide. stage: the current one's name.
    """
    try:
        yield
    except (AlignkitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None  # the command line's library ends the process if nobody reads on
        if _of_the_machine(error):
            raise
        found = _culprit(error, registrations())
        if found is not None:
            registration, method, place = found
            blamed = author_of(registration, stage()).error(method, _words(error) + place)
            for note in getattr(error, "__notes__", ()):
                blamed.add_note(note)
            raise blamed from error
        if isinstance(error, SystemExit):
            frame = _last(error)
            raise PluginError(f"{_words(error)}, at {frame}; a run ends only when it is complete") from error
        raise


def _culprit(error: BaseException, registrations: Iterable[Registration]) -> tuple[Registration, str, str] | None:
    """The innermost function of a stranger's plugin in the traceback: whose, its name, and ` (file.py:12)`."""
    files = {str(r.source_path): r for r in registrations if r.distribution != OURS and r.source_path is not None}
    packages = {os.path.dirname(path) + os.sep: r for path, r in files.items() if path.endswith("__init__.py")}
    found: list[tuple[Registration, str, str]] = []
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path, name = frame.f_code.co_filename, frame.f_code.co_qualname
        owner = files.get(path) or next((r for folder, r in packages.items() if path.startswith(folder)), None)
        if owner is not None:
            found.append((owner, name, f" ({os.path.basename(path)}:{line})"))
            if "." in name and "<" not in name:  # a method says more than the helper that it calls
                return owner, name, found[0][2]
    return found[0] if found else None


def _of_the_machine(error: BaseException) -> bool:
    """Whether memory or disk space ran out, or the disk is read-only: not the fault of whoever needed it."""
    read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    return read_only or memory_ran_out(error) or disk_is_full(error)


def _words(error: BaseException) -> str:
    """`KeyError: 'advantage'`, on one line."""
    if isinstance(error, SystemExit):
        return f"it called exit({'' if error.code is None else error.code})"
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def full_name(method: str, owner: object) -> str:
    """`Class.method`; the owner may also be a class that cannot be made, or a function."""
    name = owner.__name__ if callable(owner) and hasattr(owner, "__name__") else type(owner).__name__
    return f"{name}.{method}" if method else name


def _classes(owner: object) -> tuple[Any, ...]:
    return getattr(owner, "__mro__", None) or ((owner,) if callable(owner) else type(owner).__mro__)


def _last(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def failure(error: BaseException, owner: object) -> str:
    """`failed: KeyError: 'x' (file.py:12)`: for a message that already says whose code it was."""
    files = _files(owner)
    inside = any(os.path.abspath(frame.filename) in files for frame in traceback.extract_tb(error.__traceback__))
    place = _place(error, owner) if inside else f" ({os.path.basename(files[0])})" if files else ""
    return f"failed: {_words(error)}{place}"


def _place(error: BaseException, owner: object) -> str:
    """` (file.py:12)`: the innermost line of the owner's module in the traceback, else the line of its class."""
    files = _files(owner)
    frames = traceback.extract_tb(error.__traceback__)
    author_frames = [frame for frame in frames if os.path.abspath(frame.filename) in files]
    if not author_frames and (place := _definition(owner)):
        return place
    last = (author_frames or frames)[-1:]
    return f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""


def _definition(owner: object) -> str:
    """` (file.py:12)`: where an author's class begins; empty if that is unknown."""
    for cls in _classes(owner):
        with suppress(OSError, TypeError):  # there is no source
            if not cls.__module__.startswith("alignkit."):
                return f" ({os.path.basename(inspect.getfile(cls))}:{inspect.getsourcelines(cls)[1]})"
    return ""


def _files(owner: object) -> list[str]:
    """The absolute files of an owner's class and its base classes, without alignkit's."""
    modules = [cls.__module__ for cls in _classes(owner) if not cls.__module__.startswith("alignkit.")]
    found = (getattr(sys.modules.get(name), "__file__", None) for name in modules)
    return [os.path.abspath(file) for file in found if file]
