"""The registry: which plugin provides what, by kind and name."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from typing import Any

import alignkit
from alignkit.contract.options import Options
from alignkit.data.files import suffix_of
from alignkit.errors import PluginError, did_you_mean, reason_of

# Kind -> the classes, by their names in `alignkit`, that its implementations derive from; none: any
# function will do. A combination can be used wherever a reward can.
KINDS: dict[str, tuple[str, ...]] = {
    "model": (),
    "format": ("Format",),
    "algorithm": ("Algorithm",),
    "reward": ("Reward", "RewardCombination"),
    "judge": ("Judge",),
    "environment": ("Environment",),
    "step": ("Step",),
    "filter": ("Filter",),
    "monitor": ("Monitor",),
    "optimizer": (),
    "schedule": (),
    "template": (),
    "tracker": ("Tracker",),
    "engine": ("Engine",),
    "reader": ("Reader",),
    "launcher": ("Launcher",),
}
DEFAULTS = ("monitor", "reader", "launcher", "model")  # kinds with defaults
# Kinds that no recipe names and no command lists: backends, and the functions that a run asks
PRIVATE: dict[str, tuple[str, ...]] = dict.fromkeys(
    (
        "_backend",
        "rewrite",
        "plan",
        "advice",
        "alike",
        "cells",
        "data_facts",
        "executor",
        "results",
    ),
    (),
)
# Names and hooks that are gone -> what a plugin has instead
RENAMED = {
    "EngineContext": "EngineSetup",
    "Observation": "MonitorReport",
    "Scores": "Sequence[float | None]",
    "dry_run": "add('plan', ...)",
    "format_unrecognized": "add('advice', ...)",
    "map_elsewhere": "add('executor', ...)",
    "metrics_opened": "metrics_logged",
    "results_shown": "add('results', ...)",
}
_NAME = re.compile(r"cannot import name '(\w+)'")
_ADDRESS = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A plugin: a module of an installed distribution, or a file, which is a distribution of its
    own.

    reason: why it failed to load.
    """

    plugin: str = ""
    distribution: str = ""
    version: str = ""
    reason: str = ""

    @property
    def origin(self) -> str:
        """`alignkit-grpo 0.3`, for messages."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def label(self) -> str:
        """`plugin 'grpo' (alignkit-grpo 0.3)`; empty without a plugin."""
        if not self.plugin:
            return ""
        if not self.version:  # a plugin in a file has none
            return f"plugin '{self.plugin}'"
        return f"plugin '{self.plugin}' ({self.origin})"

    def __str__(self) -> str:
        return f"{self.label} failed to load: {self.reason}"


@dataclass(frozen=True)
class Registration(Origin):
    """An implementation under a name.

    target: the implementation, or where it is, as `module:Class`. file: of the plugin's module.
    default: whether it is used where no recipe names one.
    """

    name: str
    target: Any
    summary: str = ""
    kind: str = ""
    file: Path | None = None
    default: bool = False

    @cached_property
    def implementation(self) -> Any:
        """What is registered; imported on first use. Raises PluginError if it cannot be, or is a
        wrong one.
        """
        if not self.is_address:
            return self.target
        module, _, name = self.target.partition(":")
        try:
            implementation = getattr(importlib.import_module(module), name)
            self.check(implementation)
        except (Exception, SystemExit) as error:
            reason = f"{self.kind} '{self.name}' is {self.target}: {reason_of(error)}"
            reason += moved(error)
            raise PluginError(str(replace(self, reason=reason))) from error
        return implementation

    @property
    def source_path(self) -> Path | None:
        """The file of the implementation's module, which is part of stage keys."""
        if self.is_address:
            return Path(str(importlib.import_module(self.target.partition(":")[0]).__file__))
        return self.file

    @property
    def is_address(self) -> bool:
        return isinstance(self.target, str) and _ADDRESS.fullmatch(self.target) is not None

    def check(self, implementation: Any) -> None:
        """Raise TypeError if something cannot be registered as this kind."""
        classes = tuple(getattr(alignkit, name) for name in (KINDS | PRIVATE)[self.kind])
        if classes:
            good = isinstance(implementation, type) and issubclass(implementation, classes)
            wanted = "a subclass of " + " or ".join(f"alignkit.{each.__name__}" for each in classes)
        elif self.kind == "template":
            good, wanted = isinstance(implementation, str), "Jinja code"
        else:
            good, wanted = callable(implementation), "a function"
        if not good:
            raise TypeError(
                f"{self.kind} '{self.name}' must be {wanted}, not {implementation!r:.100}"
            )
        if classes and not issubclass(getattr(implementation, "Options", Options), Options):
            raise TypeError(
                f"{self.kind} '{self.name}' needs Options that are a subclass of alignkit.Options"
            )


def moved(error: BaseException) -> str:
    """What to write instead of a name or a hook that is gone; of a module or a name that is
    elsewhere: what to import.
    """
    for gone, now in RENAMED.items():
        if f"'{gone}'" in str(error) and not isinstance(error, KeyError):
            return f"; write {now} instead"
    missing = str(getattr(error, "name", ""))
    package = missing.partition(".")[0]
    if not isinstance(error, ImportError) or not package.startswith(alignkit.__name__):
        return ""
    # The error names the first folder that is not there, and only the code names the module in it.
    code = extract_tb(error.__traceback__)[-1].line or ""
    wanted = {*re.findall(r"\w+", code.partition(missing)[2]), missing.rpartition(".")[2]}
    if name := _NAME.match(str(error)):
        wanted = {name[1]}
    defines = re.compile(
        rf"^(?:def |class )?({'|'.join(wanted - {'import', 'as'})})\b", re.MULTILINE
    )
    modules, definitions = set[str](), set[str]()
    for place in {alignkit.__name__, package} & sys.modules.keys():
        root = Path(str(sys.modules[place].__path__[0]))
        for file in root.rglob("*.py"):
            module = ".".join([place, *file.relative_to(root).with_suffix("").parts])
            if file.stem in wanted and not name:
                modules.add(module)
            if defines.search(file.read_text("utf-8")):
                definitions.add(module)
    what = f"{name[1]} from " if name else ""
    found = " or ".join(sorted(modules or definitions))
    return f"; import {what}{found} instead" if found else ""


class Registry:
    """Registrations by kind and name. broken: plugins that failed to load."""

    def __init__(self) -> None:
        self.broken: list[Origin] = []
        self._all: list[Registration] = []

    def add(self, registration: Registration) -> None:
        """Add a registration. A duplicate name becomes an error only when it is requested."""
        self._all.append(registration)

    def names(self, kind: str) -> list[str]:
        """Every name of a kind, sorted."""
        return sorted({one.name for one in self.registrations(kind)})

    def registrations(self, kind: str) -> list[Registration]:
        """Every registration of a kind, sorted by name."""
        return sorted((one for one in self._all if one.kind == kind), key=lambda one: one.name)

    def defaults(self, kind: str) -> list[Registration]:
        """Registrations of a kind that are used if no recipe names one."""
        return [one for one in self.registrations(kind) if one.default]

    def only(self, kind: str) -> Registration:
        """The one default of a kind. Raises PluginError if there is none, or another one."""
        found = self.defaults(kind)
        if len(found) != 1:
            origins = " and ".join(f"'{one.name}' ({one.origin})" for one in found)
            help = f"disable one of {origins} with --no-plugin"
            if not found:
                help = "`alignkit plugins` lists what is installed"
            text = f"{len(found) or 'no'} plugins provide the default {kind}"
            raise PluginError("\n  ".join([text, help, *map(str, self.broken)]))
        return found[0]

    def usable(self, kind: str) -> dict[str, Any]:
        """The implementations of a kind that can be imported, by name."""
        found = {}
        for registration in self.registrations(kind):
            with suppress(PluginError):
                found[registration.name] = registration.implementation
        return found

    def has(self, kind: str, name: str) -> bool:
        """Whether a plugin provides the name, which may be written `package:name`."""
        return bool(self._matches(kind, name))

    def source_of(self, base: str) -> tuple[str, str]:
        """The model source that `model.base` names, and what follows its `NAME://`, or a file and
        the source that is named like its suffix; both are empty for other models.
        """
        name, separator, path = base.partition("://")
        suffix = suffix_of(Path(base)).removeprefix(".")
        if not separator and suffix:
            name, path = suffix, base
        return (name, path) if self.has("model", name) else ("", "")

    def get(self, kind: str, name: str, others: Iterable[str] = ()) -> Registration:
        """The registration of `name` or `package:name`, with its implementation imported.

        Raises PluginError, which says what to do. others: names that mean something else there, and
        may have been meant.
        """
        matches = self._matches(kind, name)
        if not matches:
            guess = did_you_mean(name.rpartition(":")[2], [*others, *self.names(kind)])
            help = guess or f"`alignkit plugins {kind}` lists all"
            raise PluginError("\n  ".join([f"no {kind} '{name}'", help, *map(str, self.broken)]))
        if len(matches) > 1:
            origins = " and ".join(one.origin for one in matches)
            choices = " or ".join(f"'{one.distribution}:{one.name}'" for one in matches)
            help = f"write {choices}, or disable one with --no-plugin"
            raise PluginError(f"{kind} '{name}' is provided by {origins}\n  {help}")
        _ = matches[0].implementation
        return matches[0]

    def _matches(self, kind: str, name: str) -> list[Registration]:
        package, _, plain = name.rpartition(":")
        candidates = [one for one in self.registrations(kind) if one.name == plain]
        return [one for one in candidates if package in ("", one.distribution, one.plugin)]


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options."""

    kind: str
    name: str
    registration: Registration
    options: Options
