"""Plugins: find them, isolate the broken ones, and resolve a name in a recipe to the one thing that claims it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from alignkit import __version__, hookspecs
from alignkit.algorithm import Algorithm, Needs, Options, Runner, Source, StageDefaults, Trains
from alignkit.errors import AlignkitError, PluginError, did_you_mean
from alignkit.formats import Format
from alignkit.reward import Combine, Judge, Reward
from alignkit.step import Step

GROUP = "alignkit"
KINDS = ("model", "format", "algorithm", "reward", "judge", "step")
# Registration hook -> the kind whose name space it fills. Combinations stand wherever a reward may stand.
_HOOKS = {
    "register_models": "model",
    "register_formats": "format",
    "register_algorithms": "algorithm",
    "register_rewards": "reward",
    "register_combines": "reward",
    "register_judges": "judge",
    "register_steps": "step",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Words that already mean something where a recipe would name the thing.
_RESERVED = {
    "format": {"path", "hub", "stage", "limit", "split", "validation", "weight", "on_bad_row", "columns", "meta"},
    "reward": {"folder"},
}


@dataclass(frozen=True)
class Claim:
    """One plugin's claim on a name. `source_path`: the plugin's module, whose text is part of a stage's hash."""

    name: str
    thing: Any
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
class Absent:
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
        if _bare(self.plugin) == _bare(name):
            return True
        if self.source_path is None:
            return False
        try:
            source = self.source_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return re.search(rf"register\w*\(\s*[\"']{re.escape(name)}[\"']", source) is not None


class Broken(Absent):
    """A plugin that could not be used."""

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' ({f'{self.distribution} {self.version}'.strip()}) failed to load: {self.reason}"


class Unresolved(PluginError):
    """A name that resolves to no claim, or to several. `broken`: a broken plugin would have given it."""

    def __init__(self, message: str, help: str = "", broken: bool = False):
        self.message, self.help, self.broken = message, help, broken
        super().__init__(f"{message}\n  {help}" if help else message)


def _bare(name: str) -> str:
    """`alignkit_ppo`, `alignkit-ppo` and `ppo` are one name to a person."""
    return name.replace("-", "_").removeprefix("alignkit_")


def singular(kind: str) -> str:
    """`algorithms` -> `algorithm`; combinations share the rewards' name space."""
    kind = kind.removesuffix("s")
    return "reward" if kind == "combine" else kind


class Registry:
    """Claims by kind (`model format algorithm reward judge step`; combinations are rewards) and name."""

    def __init__(self, broken: list[Broken] | None = None):
        self.broken: list[Broken] = broken if broken is not None else []
        self.off: list[Absent] = []  # switched off by the user
        self._claims: dict[str, dict[str, list[Claim]]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, claim: Claim) -> None:
        """Enter a claim; a second claim on a name only matters when somebody asks for the name."""
        self._claims[singular(kind)].setdefault(claim.name, []).append(claim)

    def names(self, kind: str) -> list[str]:
        """Every claimed name of a kind, sorted."""
        return sorted(self._claims[singular(kind)])

    def claims(self, kind: str) -> list[Claim]:
        """Every claim of a kind, sorted by name."""
        table = self._claims[singular(kind)]
        return [claim for name in sorted(table) for claim in table[name]]

    def has(self, kind: str, name: str) -> bool:
        """Whether anything claims the name (plain, or as `package:name`)."""
        return bool(self._find(singular(kind), name))

    def get(self, kind: str, name: str) -> Claim:
        """The single claim on `name`, which may be written `package:name`; else an error that says what to do."""
        kind = singular(kind)
        found = self._find(kind, name)
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(kind, name, found)
        raise self._unknown(kind, name)

    def _find(self, kind: str, name: str) -> list[Claim]:
        package, _, plain = name.rpartition(":")
        claims = self._claims[kind].get(plain, [])
        return [claim for claim in claims if not package or package in (claim.distribution, claim.plugin)]

    def culprits(self, name: str) -> list[Absent]:
        """Plugins that would likely give `name`, were they not broken or switched off."""
        return [absent for absent in (*self.broken, *self.off) if absent.would_give(name)]

    def _unknown(self, kind: str, name: str) -> Unresolved:
        plain = name.rpartition(":")[2]
        if culprits := self.culprits(plain):
            reasons = "; ".join(map(str, culprits))
            broken = any(isinstance(culprit, Broken) for culprit in culprits)
            help = "`alignkit plugins` lists all" if broken else f"switch it on again, or name another {kind}"
            return Unresolved(f"{kind} '{name}' cannot be used: {reasons}", help, broken)
        guess = did_you_mean(plain, self.names(kind))
        known = ", ".join(self.names(kind)) or "none"
        help = " ".join(part for part in (guess, f"(installed: {known})") if part)
        return Unresolved(f"no {kind} '{name}'", "\n  ".join([help, *map(str, self.broken)]))


def _ambiguous(kind: str, name: str, claims: Sequence[Claim]) -> Unresolved:
    who = " and ".join(claim.origin if claim.origin else claim.plugin for claim in claims)
    plain = claims[0].name
    packages = [claim.distribution for claim in claims]
    # Two plugins of one distribution are told apart by their own names.
    chosen = packages if len(set(packages)) == len(claims) else [claim.plugin for claim in claims]
    ways = " or ".join(f"'{package}:{plain}'" for package in chosen)
    return Unresolved(f"{kind} '{name}' is claimed by {who}", f"write {ways}, or switch one off with --no-plugin")


@dataclass(frozen=True)
class _Found:
    """A plugin before it is loaded."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]
    requires: Callable[[], Iterable[str]] = tuple
    locate: Callable[[], Path | None] = lambda: None

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    def is_called(self, name: str) -> bool:
        """Whether a person means this plugin by `name` or `package:name`."""
        package, _, plain = name.rpartition(":")
        return _bare(plain) == _bare(self.name) and package in ("", self.distribution)

    def broken(self, reason: str) -> Broken:
        return Broken(self.name, self.distribution, self.version, reason, self._path())

    def off(self, reason: str) -> Absent:
        return Absent(self.name, self.distribution, self.version, reason, self._path())

    def _path(self) -> Path | None:
        with suppress(Exception):
            return self.locate()
        return None


class Plugins:
    """Everything installed: `registry` for the names in recipes, `broken`, and `manager` for event hooks."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.broken: list[Broken] = []
        self.registry = Registry(self.broken)

    def notify(self, hook: str, **kwargs: Any) -> None:
        """Tell the observers. A failing one stops the run, which would otherwise go on unobserved.

        Except `run_finished`: the run is over, so its failure is only reported.
        """
        try:
            getattr(self.manager.hook, hook)(**kwargs)
        except AlignkitError:
            raise
        except Exception as error:
            message = f"{self._culprit(hook, error)} failed in {hook}: {_reason(error)}"
            if hook != "run_finished":
                raise PluginError(message) from error
            print(f"warning: {message}", file=sys.stderr)

    def _culprit(self, hook: str, error: BaseException) -> str:
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        names = {impl.function.__code__: impl.plugin_name for impl in impls if hasattr(impl.function, "__code__")}
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in names:
                return f"plugin '{names[trace.tb_frame.f_code]}'"
            trace = trace.tb_next
        return "a plugin"

    def _load(self, found: _Found) -> None:
        """Load one plugin; whatever goes wrong in it is recorded and leaves no trace in the manager."""
        try:
            _check_requirements(found.requires())
            plugin = found.load()
            self.manager.register(plugin, name=found.name)
            self.manager.check_pending()  # a misspelt hook would otherwise be ignored in silence
            claims = self._collect(found, plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() at import is the plugin's mistake as well, not the user's wish
            if self.manager.has_plugin(found.name):
                self.manager.unregister(name=found.name)
            broken = found.broken(_reason(error))
            if _strict():
                raise PluginError(str(broken)) from error
            self.broken.append(broken)
        else:
            for kind, claim in claims:
                self.registry.add(kind, claim)

    def _collect(self, found: _Found, plugin: Any) -> list[tuple[str, Claim]]:
        """Call the plugin's register hooks one by one, so that a mistake is laid at its door."""
        file = getattr(plugin, "__file__", None) or getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
        origin = Claim("", None, "", found.name, found.distribution, found.version, Path(file) if file else None)
        claims: list[tuple[str, Claim]] = []
        for hook in _HOOKS:
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != found.name:
                    continue
                if impl.wrapper or impl.hookwrapper:
                    raise TypeError(f"{hook} cannot be a wrapper")
                register = _registrar(hook, origin, claims)
                impl.function(*[register for _ in impl.argnames])
        return claims


def _registrar(hook: str, origin: Claim, claims: list[tuple[str, Claim]]) -> Callable[..., None]:
    """The `register` that a plugin is handed: checks what it is given at the line that gives it."""
    kind = _HOOKS[hook]

    def register(name: str, thing: Any, *, summary: str = "") -> None:
        _check_name(kind, name)
        if any(known == kind and claim.name == name for known, claim in claims):
            raise ValueError(f"registers {kind} '{name}' twice")
        _check_thing(hook, name, thing)
        claims.append((kind, replace(origin, name=name, thing=thing, summary=str(summary))))

    return register


def _check_name(kind: str, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} is not made of letters, digits, '.', '_' and '-'")
    if name in _RESERVED.get(kind, ()):
        raise ValueError(f"{kind} name '{name}' is reserved: recipes use the word for something else")


def _base(hook: str) -> type | None:
    """What a registered class must derive from; None: any callable."""
    if hook == "register_formats":
        return Format
    return {
        "register_algorithms": Algorithm,
        "register_rewards": Reward,
        "register_combines": Combine,
        "register_judges": Judge,
        "register_steps": Step,
    }.get(hook)


def _check_thing(hook: str, name: str, thing: Any) -> None:
    """Refuse what the engine could only trip over later, with a reason in the plugin author's words."""
    label = f"{_HOOKS[hook]} '{name}'"
    base = _base(hook)
    if base is None:
        if not callable(thing):
            raise TypeError(f"{label} must be callable, not {thing!r}")
        return
    if not isinstance(thing, type) or not issubclass(thing, base):
        hint = " (pass the class, not an instance)" if isinstance(thing, base) else ""
        raise TypeError(f"{label} must be a subclass of alignkit.{base.__name__}, not {thing!r}{hint}")
    options = getattr(thing, "Options", Options)
    if not isinstance(options, type) or not issubclass(options, Options):
        raise TypeError(f"{label}: its Options must be a subclass of alignkit.Options, not {options!r}")
    if issubclass(thing, Algorithm):
        _check_algorithm(label, thing)


def _check_algorithm(label: str, thing: type[Algorithm]) -> None:
    expected = {"source": Source, "trains": Trains, "defaults": StageDefaults, "needs": Needs}
    for attribute, wanted in expected.items():
        value = getattr(thing, attribute)
        if not isinstance(value, (wanted, property)):  # a property: depends on the options
            raise TypeError(f"{label}: {attribute} must be alignkit's {wanted.__name__}, not {value!r}")
    if issubclass(thing, Runner):
        if thing.train is Runner.train:
            raise TypeError(f"{label} trains nothing: define train(self, run)")
    elif thing.loss is Algorithm.loss:
        raise TypeError(f"{label} gives no loss: define loss(self, batch, out)")


def _check_requirements(requires: Iterable[str]) -> None:
    """A distribution says in its own metadata which alignkit it was built for; hold it to that."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name != GROUP or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            raise ImportError(f"needs alignkit{requirement.specifier}, this is {__version__}")


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _strict() -> bool:
    return os.environ.get("ALIGNKIT_STRICT", "") not in ("", "0")


def _entry_points() -> list[_Found]:
    """Installed plugins by metadata alone; nothing is imported. Sorted: the order never depends on the disk."""
    found = []
    known: dict[int, tuple[str, str]] = {}  # one distribution may hold many plugins, and parsing metadata is slow
    for point in importlib.metadata.entry_points(group=GROUP):
        dist = point.dist
        if id(dist) not in known:
            known[id(dist)] = (dist.metadata["Name"], dist.version) if dist else ("", "")
        name, version = known[id(dist)]
        requires = _requirements(dist) if name != GROUP else tuple
        found.append(_Found(point.name, name, version, point.load, requires, _locator(point.module)))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def _requirements(dist: importlib.metadata.Distribution | None) -> Callable[[], Iterable[str]]:
    return lambda: (dist.requires or []) if dist else []


def _locator(module: str) -> Callable[[], Path | None]:
    def locate() -> Path | None:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None

    return locate


def _file_plugin(path: Path) -> _Found:
    """A plugin given as a file (`--plugin`), which is its own distribution."""
    return _Found(path.name, path.name, "", lambda: _import_file(path), locate=lambda: path)


def _import_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; --plugin takes a .py file")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    # The prefix keeps a file called `json.py` from hiding the module of that name.
    name = f"alignkit_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look it up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _enabled(found: list[_Found], disabled: Sequence[str]) -> tuple[list[_Found], list[Absent]]:
    """What is left, and what is switched off, by name or `package:name`; to ask so for what isn't there is an error."""
    for name in disabled:
        if not any(plugin.is_called(name) for plugin in found):
            known = sorted({plugin.name for plugin in found})
            hint = did_you_mean(name, known) or f"(installed: {', '.join(known) or 'none'})"
            raise PluginError(f"cannot switch off plugin '{name}': there is none; {hint}")
    environment = os.environ.get("ALIGNKIT_DISABLE_PLUGINS", "").split(",")
    ways = {name.strip(): "ALIGNKIT_DISABLE_PLUGINS" for name in environment if name.strip()}
    ways |= {name: f"--no-plugin {name}" for name in disabled}
    left, off = [], []
    for plugin in found:
        way = next((way for name, way in ways.items() if plugin.is_called(name)), None)
        if way is None:
            left.append(plugin)
        else:
            off.append(plugin.off(f"is switched off by {way}"))
    return left, off


_current: Plugins | None = None


def load_plugins(extra_files: Iterable[Path] = (), disabled: Sequence[str] = ()) -> Plugins:
    """Load everything installed and the extra files anew; `plugins()` gives the result from then on."""
    global _current
    result = Plugins()
    found, off = _enabled([*_entry_points(), *(_file_plugin(Path(path)) for path in extra_files)], disabled)
    result.registry.off += off
    counts = Counter(plugin.name for plugin in found)
    for plugin in found:
        if counts[plugin.name] == 1:
            result._load(plugin)
            continue
        # The manager would keep the first and drop the second in silence.
        who = " and ".join(other.origin for other in found if other.name == plugin.name)
        reason = f"two plugins are called '{plugin.name}' ({who}); remove one, or --no-plugin PACKAGE:NAME"
        broken = plugin.broken(reason)
        if _strict():
            raise PluginError(str(broken))
        result.broken.append(broken)
    _current = result
    return result


def plugins() -> Plugins:
    """The plugins of this process, loaded on first use."""
    return _current if _current is not None else load_plugins()
