"""The registry: which plugin provides what, by kind and name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.engine import WITHOUT_PLUGIN
from alignkit.errors import PluginError, did_you_mean
from alignkit.options import Options

FEW = 6  # names, which fit in an error


@dataclass(frozen=True)
class Registration:
    """An implementation and its name. source_path: the plugin's module, which is part of stage hashes."""

    name: str
    implementation: Any
    summary: str = ""
    plugin: str = ""
    distribution: str = ""
    version: str = ""
    source_path: Path | None = None

    @property
    def origin(self) -> str:
        """`alignkit-grpo 0.3`, for messages."""
        return _origin(self.distribution, self.version)


@dataclass(frozen=True)
class UnavailablePlugin:
    """A plugin that is not used, and why. source_path: its module, if it can be found."""

    plugin: str
    distribution: str
    version: str
    reason: str
    source_path: Path | None = None

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' ({_origin(self.distribution, self.version)}) {self.reason}"

    def likely_provides(self, name: str) -> bool:
        """Whether the plugin has this name, or its source registers it."""
        if normalized_name(self.plugin) == normalized_name(name):
            return True
        return name in registered_names(self.source_path)


class BrokenPlugin(UnavailablePlugin):
    """A plugin that failed to load."""

    def __str__(self) -> str:
        origin = _origin(self.distribution, self.version)
        return f"plugin '{self.plugin}' ({origin}) failed to load: {self.reason}"


class Unresolved(PluginError):
    """A name that no plugin provides, or several do. broken: a broken plugin likely provides it."""

    def __init__(self, message: str, help: str = "", broken: bool = False):
        self.message, self.help, self.broken = message, help, broken
        super().__init__(f"{message}\n  {help}" if help else message)


class Registry:
    """Registrations by kind (see `alignkit.plugins.KINDS`) and name.

    broken: plugins that failed to load. disabled: plugins that the user switched off. pending: what the
    source of plugins registers that are not loaded yet, and what loads them.
    """

    def __init__(self, broken: list[BrokenPlugin] | None = None):
        self.broken: list[BrokenPlugin] = broken if broken is not None else []
        self.disabled: list[UnavailablePlugin] = []
        self.pending: list[tuple[set[str], Callable[[], None]]] = []
        self.warnings: dict[str, str] = {}  # by what was asked for
        self._registrations: defaultdict[str, dict[str, list[Registration]]] = defaultdict(dict)

    def add(self, kind: str, registration: Registration) -> None:
        """Add a registration. A duplicate name becomes an error only when it is requested."""
        self._registrations[kind].setdefault(registration.name, []).append(registration)

    def complete(self, kind: str = "", name: str | None = None) -> None:
        """Load the pending plugins that may provide a name of a kind; None: any name. Without a kind, load all."""
        hooks = {f"register_{kind}s", *(["register_combinations"] if kind == "reward" else [])}
        for plugin in list(self.pending):
            registered, load = plugin
            if not kind or (registered & hooks and (name is None or registered & {name, ""})):
                self.pending.remove(plugin)
                load()

    def names(self, kind: str) -> list[str]:
        """Every name of a kind, sorted."""
        self.complete(kind)
        return sorted(self._registrations[kind])

    def registrations(self, kind: str) -> list[Registration]:
        """Every registration of a kind, sorted by name."""
        self.complete(kind)
        table = self._registrations[kind]
        return [registration for name in sorted(table) for registration in table[name]]

    def everything(self) -> list[Registration]:
        """Every registration of every kind."""
        self.complete("")
        return [registration for kind in list(self._registrations) for registration in self.registrations(kind)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a plugin provides the name, which may be written `package:name`."""
        return bool(self._matches(kind, name))

    def get(self, kind: str, name: str, others: Iterable[str] = ()) -> Registration:
        """The registration of `name` or `package:name`. Raises Unresolved, which says what to do.

        others: names that mean something else there, and may have been meant.

        If several have a name, that of a file given by --plugin wins, then alignkit's own, with a warning: a package
        that is installed must not break other people's recipes.
        """
        matches = self._matches(kind, name)
        for wins in (
            lambda one: one.distribution.endswith(".py"),
            lambda one: one.distribution == "alignkit",
        ):
            chosen = list(filter(wins, matches))
            if len(matches) > 1 and len(chosen) == 1:
                shadowed = [one for one in matches if one is not chosen[0]]
                self.warnings[f"{kind} {name}"] = _shadowing(kind, name, chosen[0], shadowed)
                return chosen[0]
        if len(matches) == 1:
            return matches[0]
        raise _ambiguous(kind, name, matches) if matches else self._unknown(kind, name, others)

    def likely_providers(self, name: str) -> list[UnavailablePlugin]:
        """The plugins that likely provide `name`, but are broken or disabled."""
        return [plugin for plugin in (*self.broken, *self.disabled) if plugin.likely_provides(name)]

    def _matches(self, kind: str, name: str) -> list[Registration]:
        package, _, plain = name.rpartition(":")
        self.complete(kind, plain)
        return [
            registration
            for registration in self._registrations[kind].get(plain, [])
            if not package or package in (registration.distribution, registration.plugin)
        ]

    def _unknown(self, kind: str, name: str, others: Iterable[str]) -> Unresolved:
        self.complete()
        plain = name.rpartition(":")[2]
        if providers := self.likely_providers(plain):
            broken = any(isinstance(plugin, BrokenPlugin) for plugin in providers)
            help = "`alignkit plugins` lists all plugins" if broken else f"enable it, or use another {kind}"
            return Unresolved(f"{kind} '{name}' cannot be used: {'; '.join(map(str, providers))}", help, broken)
        if plain in WITHOUT_PLUGIN.get(kind, ()):
            return Unresolved(f"{kind} '{plain}' has no options", f"write '{kind}: {plain}'")
        names = sorted({*self.names(kind), *WITHOUT_PLUGIN.get(kind, ())})
        guess = did_you_mean(plain, [*others, *names])
        listed = (
            f"installed: {', '.join(names) or 'none'}" if len(names) <= FEW else f"`alignkit plugins {kind}` lists all"
        )
        help = f"{guess} ({listed})" if guess else listed
        return Unresolved(f"no {kind} '{name}'", "\n  ".join([help, *map(str, self.broken)]))


def registered_names(path: Path | None) -> set[str]:
    """What a plugin's module registers, by its source: its hooks and names; an empty one stands for computed names."""
    try:
        source = path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return set()
    names = re.findall(r"\bregister\w*\((?!register)(?:\s*[\"']([^\"']+)[\"'])?", source)
    return {*names, *re.findall(r"\bdef (register_\w+)", source)}


def normalized_name(name: str) -> str:
    """A plugin's name as people say it: `alignkit_ppo`, `alignkit-ppo` and `ppo` are one name."""
    return name.replace("-", "_").removeprefix("alignkit_")


def normalized_package(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _shadowing(kind: str, name: str, chosen: Registration, others: Sequence[Registration]) -> str:
    theirs = " and ".join(one.origin for one in others)
    choices = " or ".join(f"'{one.distribution}:{one.name}'" for one in others)
    return f"{kind} '{name}' is that of {chosen.origin}; {theirs} provides one, too: write {choices} to use it"


def _origin(distribution: str, version: str) -> str:
    return f"{distribution} {version}".strip()


def _ambiguous(kind: str, name: str, matches: Sequence[Registration]) -> Unresolved:
    origins = " and ".join(registration.origin or registration.plugin for registration in matches)
    packages = [registration.distribution for registration in matches]
    if len(set(packages)) < len(matches):  # two plugins of one package differ by their own names
        packages = [registration.plugin for registration in matches]
    choices = " or ".join(f"'{package}:{matches[0].name}'" for package in packages)
    return Unresolved(f"{kind} '{name}' is provided by {origins}", f"write {choices}, or disable one with --no-plugin")


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options.

    unused: what was made of it and has only been checked; see `plugin_errors.borrowed`.
    """

    kind: str
    name: str
    registration: Registration
    options: Options
    unused: list[Any] = field(init=False, default_factory=list, compare=False, repr=False)
