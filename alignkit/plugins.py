"""Find and load plugins. A broken plugin breaks only itself."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import pluggy
from pydantic import ConfigDict, ValidationError

from alignkit import __version__, hookspecs
from alignkit.algorithm import Algorithm, Needs, Source, StageDefaults, Trains
from alignkit.engine import WITHOUT_PLUGIN, Engine, EngineOptions
from alignkit.environment import Environment, tool_functions, why_no_tool
from alignkit.errors import AlignkitError, PluginError, Problem, RecipeError, did_you_mean, reason_of
from alignkit.external import ExternalTrainer
from alignkit.filters import Filter
from alignkit.formats import Format
from alignkit.io.importing import LEFT_OUT, left_out, of_command
from alignkit.io.lookup import is_dir, is_file
from alignkit.launcher import ACCELERATE, Launcher
from alignkit.monitor import Monitor
from alignkit.options import Options
from alignkit.readers import BUILT_IN, Reader, use_readers
from alignkit.registry import BrokenPlugin, Registration, Registry, UnavailablePlugin, normalized_name, registered_names
from alignkit.reward import Judge, Reward, RewardCombination
from alignkit.step import Step
from alignkit.tracker import Tracker

GROUP = "alignkit"
COMMANDS = "alignkit.commands"
# Registration hook -> kind, and the class that a registered class must derive from; None: any callable will do; str:
# a text.
# A combination can be used wherever a reward can.
HOOKS: dict[str, tuple[str, type | None]] = {
    "register_models": ("model", None),
    "register_formats": ("format", Format),
    "register_algorithms": ("algorithm", Algorithm),
    "register_rewards": ("reward", Reward),
    "register_combinations": ("reward", RewardCombination),
    "register_judges": ("judge", Judge),
    "register_environments": ("environment", Environment),
    "register_steps": ("step", Step),
    "register_filters": ("filter", Filter),
    "register_monitors": ("monitor", Monitor),
    "register_optimizers": ("optimizer", None),
    "register_schedules": ("schedule", None),
    "register_templates": ("template", str),
    "register_trackers": ("tracker", Tracker),
    "register_engines": ("engine", Engine),
    "register_readers": ("reader", Reader),
    "register_launchers": ("launcher", Launcher),
}
KINDS = tuple(dict.fromkeys(kind for kind, _ in HOOKS.values()))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Words that recipes use for something else where they would name the implementation.
_RESERVED = {
    "format": {
        *("path", "hub", "name", "revision", "data_files", "split", "stage", "limit"),
        *("validation", "part", "group", "weight", "on_bad_row", "columns", "meta"),
    },
    "reward": {"folder"},
    **WITHOUT_PLUGIN,
}


@dataclass(frozen=True)
class _Candidate:
    """A plugin that is not loaded yet."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]
    locate: Callable[[], Path | None] = lambda: None

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def label(self) -> str:
        return f"plugin '{self.name}' ({self.origin})"

    def is_called(self, name: str) -> bool:
        """Whether `name` or `package:name` means this plugin."""
        package, _, plain = name.rpartition(":")
        return normalized_name(plain) == normalized_name(self.name) and package in ("", self.distribution)

    def broken(self, reason: str) -> BrokenPlugin:
        return BrokenPlugin(self.name, self.distribution, self.version, reason, self.source())

    def disabled(self, reason: str) -> UnavailablePlugin:
        return UnavailablePlugin(self.name, self.distribution, self.version, reason, self.source())

    def source(self) -> Path | None:
        with suppress(Exception):
            return self.locate()
        return None


class Plugins:
    """The installed plugins.

    registry: what recipes can name. broken: plugins that failed to load. manager: pluggy's, which calls event hooks.
    files, without: the extra files and the disabled names; another process loads the same plugins with them.
    """

    def __init__(self, files: Iterable[Path] = (), without: Iterable[str] = ()) -> None:
        self.files, self.without, self.broken = tuple(files), tuple(without), list[BrokenPlugin]()
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.registry = Registry(self.broken)

    def notify(self, hook: str, **kwargs: Any) -> list[Any]:
        """Call an event hook; returns what the observers do. One that fails stops the run, which is then unobserved.

        After `run_finished` there is nothing to stop, so a failure is only a warning.
        """
        self.registry.complete()
        try:
            return list(getattr(self.manager.hook, hook)(**kwargs) or ())  # None: a wrapper dropped the results
        except (AlignkitError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginError(f"{self._failing_plugin(hook, error)} failed in {hook}: {reason_of(error)}") from error

    def _failing_plugin(self, hook: str, error: BaseException) -> str:
        """The plugin whose implementation of the hook failed: wrappers are in the traceback, too, above it."""
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        names = {impl.function.__code__: impl.plugin_name for impl in impls if hasattr(impl.function, "__code__")}
        failed = [names[frame.f_code] for frame, _ in walk_tb(error.__traceback__) if frame.f_code in names]
        return f"plugin '{failed[-1]}'" if failed else "a plugin"

    def load(self, candidate: _Candidate) -> None:
        """Load one plugin. If that fails, record why and leave no trace in the manager."""
        try:
            plugin = candidate.load()
            self.manager.register(plugin, name=candidate.name)
            self._check_hooks()
            if not self.manager.get_hookcallers(plugin):
                raise PluginError("it registers nothing: no function is marked with @hookimpl")
            registrations = self._registrations(candidate, plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes sys.exit() at import
            if self.manager.has_plugin(candidate.name):
                self.manager.unregister(name=candidate.name)
            version = f"; this is alignkit {__version__}" if isinstance(error, ImportError | AttributeError) else ""
            reason = f"{reason_of(error)}{_line(error, candidate.source())}{version}"
            self.reject(candidate, reason, error)
        else:
            for kind, registration in registrations:
                self.registry.add(kind, registration)

    def _check_hooks(self) -> None:
        """Raise PluginError for a misspelled hook, which pluggy would ignore."""
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            hook = re.search(r"'(\w+)'", str(error))
            if hook is None:
                raise
            known = [name for name, caller in vars(self.manager.hook).items() if getattr(caller, "spec", None)]
            guess = did_you_mean(hook[1], known)
            if hook[1] == "register_commands":
                guess = "commands are in a module of their own, in the entry-point group 'alignkit.commands'"
            message = f"unknown hook '{hook[1]}'" + (f"; {guess}" if guess else "")
            raise PluginError(message) from error

    def reject(self, candidate: _Candidate, reason: str, error: BaseException | None = None) -> None:
        """Record a plugin as broken. With ALIGNKIT_STRICT, raise PluginError instead."""
        broken = candidate.broken(reason)
        if _strict():
            raise PluginError(str(broken)) from error
        self.broken.append(broken)

    def _registrations(self, candidate: _Candidate, plugin: Any) -> list[tuple[str, Registration]]:
        """Call the plugin's registration hooks itself, not through the manager: an error is then this plugin's."""
        file = getattr(plugin, "__file__", None) or getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
        path = Path(file) if file else None
        origin = Registration("", None, "", candidate.name, candidate.distribution, candidate.version, path)
        registrations: list[tuple[str, Registration]] = []
        for hook in HOOKS:
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != candidate.name:
                    continue
                if impl.wrapper or impl.hookwrapper:
                    raise TypeError(f"{hook} cannot be a wrapper")
                register = _registrar(hook, origin, registrations)
                impl.function(*[register for _ in impl.argnames])
        return registrations


def _line(error: BaseException, source: Path | None) -> str:
    """` (file.py:12)`: the innermost line of a plugin in the traceback; empty if its code did not run."""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path == source or (source and source.name == "__init__.py" and source.parent in path.parents):
            return f" ({path.name}:{line})"
    return ""


def _registrar(hook: str, origin: Registration, registrations: list[tuple[str, Registration]]) -> Callable[..., None]:
    """The `register` that a plugin calls. It checks its arguments, so that a traceback points at the plugin."""
    kind, _ = HOOKS[hook]

    def register(name: str, implementation: Any, *, summary: str = "") -> None:
        _check_name(kind, name)
        if any(known == kind and registration.name == name for known, registration in registrations):
            raise ValueError(f"registers {kind} '{name}' twice")
        check_implementation(hook, name, implementation)
        if origin.distribution != GROUP and hasattr(implementation, "Options"):
            check_defaults(f"{kind} '{name}'", implementation.Options)
        registrations.append((kind, replace(origin, name=name, implementation=implementation, summary=str(summary))))

    return register


def _check_name(kind: str, name: Any) -> None:
    if kind == "reader":
        _check_suffix(name)
    elif not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must consist of letters, digits, '.', '_' and '-'")
    if name in _RESERVED.get(kind, ()):
        raise ValueError(f"{kind} name '{name}' is reserved: recipes use this word for something else")


def _check_suffix(name: Any) -> None:
    if not isinstance(name, str) or not name.startswith(".") or not _NAME.fullmatch(name[1:]):
        raise ValueError(f"a reader's name is a suffix such as '.notes', not {name!r}")
    if name in BUILT_IN:
        raise ValueError(f"files with the suffix {name} need no reader: they are rows")


def check_implementation(hook: str, name: str, implementation: Any) -> None:
    """Refuse an implementation that could only fail later, with a reason that its author understands."""
    kind, base = HOOKS[hook]
    label = f"{kind} '{name}'"
    if base is None:
        if not callable(implementation):
            raise TypeError(f"{label} must be callable, not {implementation!r}")
        return
    if base is str:
        if not isinstance(implementation, str):
            raise TypeError(f"{label} must be Jinja code, not {implementation!r}")
        return
    if not isinstance(implementation, type) or not issubclass(implementation, base):
        hint = " (pass the class, not an instance)" if isinstance(implementation, base) else ""
        raise TypeError(f"{label} must be a subclass of alignkit.{base.__name__}, not {implementation!r}{hint}")
    options = getattr(implementation, "Options", Options)
    wanted: type[Options] = EngineOptions if base is Engine else Options
    if not isinstance(options, type) or not issubclass(options, wanted):
        raise TypeError(f"{label}: its Options must be a subclass of alignkit.{wanted.__name__}, not {options!r}")
    if issubclass(implementation, Algorithm):
        _check_algorithm(label, implementation)
    _check_methods(label, implementation, base)
    if issubclass(implementation, Environment):
        tools = {name: tool.__get__(object()) for name, tool in tool_functions(implementation).items()}
        for why in filter(None, (why_no_tool(*tool) for tool in tools.items())):
            raise TypeError(f"{label}: {why}")


def check_defaults(label: str, options: type[Options]) -> None:
    """Refuse an option whose default is no value of it, which a recipe that leaves it out would get."""

    class Strict(options):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(validate_default=True)

    try:
        Strict.model_validate({}, strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["loc"] and item["type"] != "missing":
                text = f"the default of option '{item['loc'][0]}' is {item['input']!r}: {item['msg']}"
                raise TypeError(f"{label}: {text}") from None


def _check_methods(label: str, implementation: type, base: type) -> None:
    """Refuse a method that is nearly called like one that the class leaves as it is: nobody would ever call it."""
    methods = dict(inspect.getmembers(implementation, inspect.isfunction))
    called = {name for method in methods.values() for name in method.__code__.co_names}
    left = [name for name, method in methods.items() if name[0] != "_" and getattr(base, name, None) is method]
    for name, method in methods.items():
        inherited = name not in vars(implementation)  # for other classes of its author, perhaps
        ours = name[0] == "_" or inherited or hasattr(base, name) or method.__module__.partition(".")[0] == GROUP
        near = [] if ours or name in called else difflib.get_close_matches(name, left, 1, 0.8)
        if near:
            help = f"did you mean '{near[0]}'? A method of your own begins with '_'"
            raise TypeError(f"{label}: nobody calls {implementation.__name__}.{name}; {help}")


def _check_algorithm(label: str, implementation: type[Algorithm]) -> None:
    expected = {"source": Source, "trains": Trains, "defaults": StageDefaults, "needs": Needs}
    for attribute, wanted in expected.items():
        value = getattr(implementation, attribute)
        if not isinstance(value, (wanted, property)):  # a property depends on the options
            raise TypeError(f"{label}: {attribute} must be alignkit's {wanted.__name__}, not {value!r}")
    if issubclass(implementation, ExternalTrainer):
        if implementation.train is ExternalTrainer.train:
            raise TypeError(f"{label} does not train: define train(self, context)")
    elif implementation.loss is Algorithm.loss:
        raise TypeError(f"{label} has no loss: define loss(self, batch, out)")


def _strict() -> bool:
    return os.environ.get("ALIGNKIT_STRICT", "") not in ("", "0")


def _entry_points() -> list[_Candidate]:
    """The installed plugins, from their metadata; nothing is imported. Sorted, as the file system has no order."""
    candidates = []
    known: dict[int, tuple[str, str]] = {}  # parsing metadata is slow, and a distribution may have many plugins
    installed = importlib.metadata.entry_points()
    groups = [GROUP, *filter(_nearly_our_group, installed.groups)]
    for point in (point for group in groups for point in installed.select(group=group)):
        dist = point.dist
        if id(dist) not in known:
            known[id(dist)] = (dist.metadata["Name"], dist.version) if dist else ("", "")
        name, version = known[id(dist)]
        locate = partial(_file_of, point.module)
        load = point.load if point.group == GROUP else partial(_refuse_group, point.group)
        candidates.append(_Candidate(point.name, name, version, load, locate))
    if not any(plugin.distribution == GROUP for plugin in candidates):
        raise PluginError(_without_ours())
    return sorted(candidates, key=lambda plugin: (plugin.name, plugin.distribution))


def _nearly_our_group(group: str) -> bool:
    """Whether a package names a group that does not exist, such as `alignkit.plugins` or `alignkit_rewards`."""
    root, _, rest = group.lower().replace("_", ".").replace("-", ".").partition(".")
    return (
        root == GROUP
        and group not in (GROUP, COMMANDS)
        and (rest.removesuffix("s") in ("", "plugin", "command", *KINDS))
    )


def _refuse_group(group: str) -> None:
    raise PluginError(
        f"its entry point is in the group '{group}'; those of plugins are in '{GROUP}', of commands in '{COMMANDS}'"
    )


def _without_ours() -> str:
    """Why alignkit's own plugins are missing: it is not installed, or another package has its name."""
    here = Path(__file__).parent
    try:
        found = importlib.metadata.distribution(GROUP)
    except importlib.metadata.PackageNotFoundError:
        return f"alignkit's own plugins are missing: {here} is not installed: run `pip install -e {here.parent}`"
    return (
        f"alignkit's own plugins are missing: the package '{GROUP}' {found.version} in {found.locate_file('')} is not "
        f"the one in {here}; remove it, or install alignkit again"
    )


def _file_of(module: str) -> Path | None:
    """The file of a module, without importing the packages that it is in, as `find_spec` would."""
    root, *inner = module.split(".")
    spec = importlib.util.find_spec(root)
    for name in inner:
        # By its own name: a namespace package in another one would look for that in `sys.modules`.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations or ())) if spec else None
    return Path(spec.origin) if spec and spec.origin else None


def _file_plugin(path: Path) -> _Candidate:
    """A plugin given as a file (`--plugin`), which counts as its own distribution."""
    return _Candidate(path.name, path.name, "", lambda: import_file(path), locate=lambda: path)


def import_file(path: Path) -> ModuleType:
    """The module of a file that is not on Python's path. Raises what its import raises, and for a path without one."""
    if is_dir(path):
        raise IsADirectoryError(f"{path} is a folder; --plugin takes a .py file")
    if not is_file(path):
        raise FileNotFoundError(f"no such file: {path}")
    # With the prefix a file called `json.py` does not hide the standard module.
    name = f"alignkit_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look it up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _enabled(candidates: list[_Candidate], disabled: Sequence[str]) -> tuple[list[_Candidate], list[UnavailablePlugin]]:
    """Split plugins into enabled and disabled. disabled: `name` or `package:name`; an unknown one is an error."""
    for name in disabled:
        if not any(plugin.is_called(name) for plugin in candidates):
            known = sorted({plugin.name for plugin in candidates})
            help = did_you_mean(name, known) or f"installed: {', '.join(known) or 'none'}"
            raise RecipeError([Problem(f"cannot disable plugin '{name}': no such plugin is installed", help=help)])
    ways = dict.fromkeys(left_out(), LEFT_OUT) | {name: f"--no-plugin {name}" for name in disabled}
    enabled, refused = [], []
    for plugin in candidates:
        way = next((way for name, way in ways.items() if plugin.is_called(name)), None)
        if way is None:
            enabled.append(plugin)
        else:
            refused.append(plugin.disabled(f"is disabled by {way}"))
    return enabled, refused


_current: Plugins | None = None


def load_plugins(
    extra_files: Iterable[Path] | None = None, disabled: Sequence[str] | None = None, *, lazy: bool = False
) -> Plugins:
    """Load the installed plugins and the extra files; `plugins()` returns the result from then on.

    extra_files, disabled: None: what the command line names.
    lazy: load each of alignkit's own when somebody asks for what it may provide, or for all names of a kind.
    """
    global _current
    files, names = of_command.get()
    disabled = names if disabled is None else disabled
    result = Plugins(map(Path, files if extra_files is None else extra_files), disabled)
    everything = [*_entry_points(), *map(_file_plugin, result.files)]
    candidates, result.registry.disabled = _enabled(everything, disabled)
    counts = Counter(plugin.name for plugin in candidates)
    for plugin in candidates:
        if counts[plugin.name] == 1 and lazy and plugin.distribution == GROUP and not _strict():
            result.registry.pending.append((registered_names(plugin.source()), partial(result.load, plugin)))
        elif counts[plugin.name] == 1:
            result.load(plugin)
        else:  # pluggy would keep the first and silently drop the others
            who = " and ".join(other.origin for other in candidates if other.name == plugin.name)
            result.reject(
                plugin,
                f"two plugins are called '{plugin.name}' ({who}); remove one, or disable it: --no-plugin PACKAGE:NAME",
            )
    use_readers(result.registry)
    _current = result
    return result


def plugins() -> Plugins:
    """The plugins of this process, loaded on first use."""
    return _current if _current is not None else load_plugins()


def source_of(base: str) -> tuple[str, str]:
    """The model source that `model.base` names, and what follows its `NAME://`; both are empty for other bases."""
    name, _, path = base.partition("://")
    return (name, path) if name in plugins().registry.names("model") else ("", "")


def launcher() -> Launcher:
    """What starts several processes. Raises Unresolved if no plugin does."""
    made: Launcher = plugins().registry.get("launcher", ACCELERATE).implementation()
    return made
