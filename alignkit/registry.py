"""The registry: which plugin provides what, by kind and name."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import PluginError, did_you_mean, reason_of
from alignkit.options import Options

# Kind -> the classes, by their names in `alignkit`, that its implementations derive from; none: any function will do.
# A combination can be used wherever a reward can.
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
FEW = 6  # names, which fit in an error
_ADDRESS = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True)
class Registration:
    """An implementation under a name.

    target: the implementation, or where it is, as `module:Class`. plugin, distribution, version: what provides it.
    file: of the plugin's module.
    """

    name: str
    target: Any
    summary: str = ""
    plugin: str = ""
    distribution: str = ""
    version: str = ""
    file: Path | None = None
    kind: str = ""

    @property
    def origin(self) -> str:
        """`alignkit-grpo 0.3`, for messages."""
        return f"{self.distribution} {self.version}".strip()

    @cached_property
    def implementation(self) -> Any:
        """What is registered; imported on first use. Raises what the import raises, and TypeError for a wrong one."""
        made = self.target
        if self.is_address:
            module, _, name = made.partition(":")
            made = getattr(importlib.import_module(module), name)
        if wrong := why_not(self.kind, made):
            raise TypeError(f"{self.kind} '{self.name}' {wrong}")
        return made

    @property
    def source_path(self) -> Path | None:
        """The file of the implementation's module, which is part of stage keys."""
        if not self.is_address:
            return self.file
        module = importlib.import_module(self.target.partition(":")[0])
        if module.__file__:
            return Path(module.__file__)
        return None

    @property
    def is_address(self) -> bool:
        return isinstance(self.target, str) and _ADDRESS.fullmatch(self.target) is not None


def why_not(kind: str, implementation: Any) -> str:
    """Why something cannot be registered as this kind, as in `must be a function, not 3`; empty if it can."""
    bases = tuple(getattr(alignkit, name) for name in KINDS.get(kind, ()))
    if bases:
        good = isinstance(implementation, type) and issubclass(implementation, bases)
        wanted = "a subclass of " + " or ".join(f"alignkit.{base.__name__}" for base in bases)
    elif kind == "template":
        good, wanted = isinstance(implementation, str), "Jinja code"
    else:
        good, wanted = callable(implementation) or not kind, "a function"
    if good and bases and not issubclass(getattr(implementation, "Options", Options), Options):
        return "needs Options that are a subclass of alignkit.Options"
    if good:
        return ""
    return f"must be {wanted}, not {implementation!r:.100}"


@dataclass(frozen=True)
class UnavailablePlugin:
    """A plugin that failed to load, or that the user disabled. reason: `failed to load: ...`."""

    plugin: str
    distribution: str
    version: str
    reason: str

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return f"plugin '{self.plugin}' ({origin}) {self.reason}"


class Unresolved(PluginError):
    """A name that no plugin provides, or several do. broken: its implementation cannot be imported."""

    def __init__(self, message: str, help: str = "", broken: bool = False):
        self.message, self.help, self.broken = message, help, broken
        super().__init__(f"{message}\n  {help}" if help else message)


class Registry:
    """Registrations by kind and name. broken, disabled: plugins that failed to load, or that the user disabled."""

    def __init__(self) -> None:
        self.broken: list[UnavailablePlugin] = []
        self.disabled: list[UnavailablePlugin] = []
        self._registrations: defaultdict[str, dict[str, list[Registration]]] = defaultdict(dict)

    def add(self, kind: str, registration: Registration) -> None:
        """Add a registration. A duplicate name becomes an error only when it is requested."""
        self._registrations[kind].setdefault(registration.name, []).append(registration)

    def names(self, kind: str) -> list[str]:
        """Every name of a kind, sorted."""
        return sorted(self._registrations[kind])

    def registrations(self, kind: str) -> list[Registration]:
        """Every registration of a kind, sorted by name."""
        table = self._registrations[kind]
        return [registration for name in sorted(table) for registration in table[name]]

    def usable(self, kind: str) -> list[Registration]:
        """The registrations of a kind whose implementations can be imported; the others are then `broken`."""
        return [registration for registration in self.registrations(kind) if not self._failure(registration)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a plugin provides the name, which may be written `package:name`."""
        return bool(self._matches(kind, name))

    def get(self, kind: str, name: str, others: Iterable[str] = ()) -> Registration:
        """The registration of `name` or `package:name`, with its implementation imported.

        Raises Unresolved, which says what to do. others: names that mean something else there, and may have been meant.
        """
        matches = self._matches(kind, name)
        if not matches:
            raise self._unknown(kind, name, others)
        if len(matches) > 1:
            raise _ambiguous(kind, name, matches)
        if failure := self._failure(matches[0]):
            raise Unresolved(f"{kind} '{name}' cannot be used: {failure}", broken=True)
        return matches[0]

    def _matches(self, kind: str, name: str) -> list[Registration]:
        package, _, plain = name.rpartition(":")
        candidates = self._registrations[kind].get(plain, [])
        return [one for one in candidates if not package or package in (one.distribution, one.plugin)]

    def _failure(self, one: Registration) -> UnavailablePlugin | None:
        """Why an implementation cannot be imported."""
        try:
            _ = one.implementation
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes sys.exit() at import
            reason = f"failed to load: {one.kind} '{one.name}' is {one.target}: {reason_of(error)}"
            broken = UnavailablePlugin(one.plugin, one.distribution, one.version, reason)
            if broken not in self.broken:
                self.broken.append(broken)
            return broken
        return None

    def _unknown(self, kind: str, name: str, others: Iterable[str]) -> Unresolved:
        names = self.names(kind)
        guess = did_you_mean(name.rpartition(":")[2], [*others, *names])
        listed = f"`alignkit plugins {kind}` lists all"
        if len(names) <= FEW:
            listed = f"installed: {', '.join(names) or 'none'}"
        help = [f"{guess} ({listed})" if guess else listed, *map(str, self.broken), *map(str, self.disabled)]
        return Unresolved(f"no {kind} '{name}'", "\n  ".join(help))


def _ambiguous(kind: str, name: str, matches: Sequence[Registration]) -> Unresolved:
    origins = " and ".join(one.origin or one.plugin for one in matches)
    choices = " or ".join(f"'{one.distribution}:{one.name}'" for one in matches)
    return Unresolved(f"{kind} '{name}' is provided by {origins}", f"write {choices}, or disable one with --no-plugin")


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options."""

    kind: str
    name: str
    registration: Registration
    options: Options
