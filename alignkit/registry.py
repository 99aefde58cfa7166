"""The registry: which plugin provides what, by kind and name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import PluginError, did_you_mean
from alignkit.options import Options

KINDS = ("model", "format", "algorithm", "reward", "judge", "step")


@dataclass(frozen=True)
class Registration:
    """One plugin's claim on a name. `source_path`: the plugin's module, whose text is part of a stage's hash."""

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
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class UnavailablePlugin:
    """A plugin that is not used and why. `source_path` helps to tell what it would have provided."""

    plugin: str
    distribution: str
    version: str
    reason: str
    source_path: Path | None = None

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' ({f'{self.distribution} {self.version}'.strip()}) {self.reason}"

    def would_give(self, name: str) -> bool:
        """Whether it likely provides `name`: it is called so, or its source registers it."""
        if _normalized(self.plugin) == _normalized(name):
            return True
        if self.source_path is None:
            return False
        try:
            source = self.source_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return re.search(rf"register\w*\(\s*[\"']{re.escape(name)}[\"']", source) is not None


class BrokenPlugin(UnavailablePlugin):
    """A plugin that could not be used."""

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' ({f'{self.distribution} {self.version}'.strip()}) failed to load: {self.reason}"


class Unresolved(PluginError):
    """A name that resolves to no claim, or to several. `broken`: a broken plugin would have given it."""

    def __init__(self, message: str, help: str = "", broken: bool = False):
        self.message, self.help, self.broken = message, help, broken
        super().__init__(f"{message}\n  {help}" if help else message)


def _normalized(name: str) -> str:
    """`alignkit_ppo`, `alignkit-ppo` and `ppo` are one name to a person."""
    return name.replace("-", "_").removeprefix("alignkit_")


def singular(kind: str) -> str:
    """`algorithms` -> `algorithm`; combinations share the rewards' name space."""
    kind = kind.removesuffix("s")
    return "reward" if kind == "combine" else kind


class Registry:
    """Claims by kind (`model format algorithm reward judge step`; combinations are rewards) and name."""

    def __init__(self, broken: list[BrokenPlugin] | None = None):
        self.broken: list[BrokenPlugin] = broken if broken is not None else []
        self.off: list[UnavailablePlugin] = []  # switched off by the user
        self._registrations: dict[str, dict[str, list[Registration]]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, registration: Registration) -> None:
        """Enter a claim; a second claim on a name only matters when somebody asks for the name."""
        self._registrations[singular(kind)].setdefault(registration.name, []).append(registration)

    def names(self, kind: str) -> list[str]:
        """Every claimed name of a kind, sorted."""
        return sorted(self._registrations[singular(kind)])

    def registrations(self, kind: str) -> list[Registration]:
        """Every claim of a kind, sorted by name."""
        table = self._registrations[singular(kind)]
        return [registration for name in sorted(table) for registration in table[name]]

    def has(self, kind: str, name: str) -> bool:
        """Whether anything claims the name (plain, or as `package:name`)."""
        return bool(self._find(singular(kind), name))

    def get(self, kind: str, name: str) -> Registration:
        """The single claim on `name`, which may be written `package:name`; else an error that says what to do."""
        kind = singular(kind)
        found = self._find(kind, name)
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(kind, name, found)
        raise self._unknown(kind, name)

    def _find(self, kind: str, name: str) -> list[Registration]:
        package, _, plain = name.rpartition(":")
        registrations = self._registrations[kind].get(plain, [])
        return [
            registration
            for registration in registrations
            if not package or package in (registration.distribution, registration.plugin)
        ]

    def likely_providers(self, name: str) -> list[UnavailablePlugin]:
        """Plugins that would likely give `name`, were they not broken or switched off."""
        return [absent for absent in (*self.broken, *self.off) if absent.would_give(name)]

    def _unknown(self, kind: str, name: str) -> Unresolved:
        plain = name.rpartition(":")[2]
        if likely_providers := self.likely_providers(plain):
            reasons = "; ".join(map(str, likely_providers))
            broken = any(isinstance(culprit, BrokenPlugin) for culprit in likely_providers)
            help = "`alignkit plugins` lists all" if broken else f"switch it on again, or name another {kind}"
            return Unresolved(f"{kind} '{name}' cannot be used: {reasons}", help, broken)
        guess = did_you_mean(plain, self.names(kind))
        known = ", ".join(self.names(kind)) or "none"
        help = " ".join(part for part in (guess, f"(installed: {known})") if part)
        return Unresolved(f"no {kind} '{name}'", "\n  ".join([help, *map(str, self.broken)]))


def _ambiguous(kind: str, name: str, registrations: Sequence[Registration]) -> Unresolved:
    who = " and ".join(
        registration.origin if registration.origin else registration.plugin for registration in registrations
    )
    plain = registrations[0].name
    packages = [registration.distribution for registration in registrations]
    # Two plugins of one distribution are told apart by their own names.
    chosen = (
        packages
        if len(set(packages)) == len(registrations)
        else [registration.plugin for registration in registrations]
    )
    ways = " or ".join(f"'{package}:{plain}'" for package in chosen)
    return Unresolved(f"{kind} '{name}' is claimed by {who}", f"write {ways}, or switch one off with --no-plugin")


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options."""

    kind: str
    name: str
    registration: Registration
    options: Options
