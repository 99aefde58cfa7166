"""Find and load plugins. A broken plugin breaks only itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import pluggy

from alignkit import __version__, hookspecs
from alignkit.errors import (
    LEFT_OUT,
    AlignkitError,
    PluginError,
    Problem,
    RecipeError,
    did_you_mean,
    left_out,
    plugin_options,
    reason_of,
)
from alignkit.io.text import is_dir, is_file
from alignkit.registry import KINDS, Registration, Registry, UnavailablePlugin, why_not

GROUP = "alignkit"
COMMANDS = "alignkit.commands"
_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*")  # that of a reader is a suffix

# Code that loads plugins, in tracebacks.
_LOADING = ("<frozen", *(str(Path(inspect.getfile(each)).parent) + os.sep for each in (hookspecs, pluggy, importlib)))


@dataclass(frozen=True)
class _Plugin:
    """A plugin that is not loaded yet. A file given by `--plugin` counts as its own distribution."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]

    def is_called(self, name: str) -> bool:
        """Whether `name` or `package:name` means this plugin; `alignkit_ppo`, `alignkit-ppo` and `ppo` are one name."""
        package, _, plain = name.rpartition(":")
        return package in ("", self.distribution) and _plain(plain) == _plain(self.name)

    def unavailable(self, reason: str) -> UnavailablePlugin:
        return UnavailablePlugin(self.name, self.distribution, self.version, reason)


def _plain(name: str) -> str:
    return name.replace("-", "_").removeprefix("alignkit_")


class Plugins:
    """The installed plugins.

    registry: what recipes can name. broken: plugins that failed to load. manager: pluggy's, which calls event hooks.
    files, without: the extra files and the disabled names; another process loads the same plugins with them.
    """

    def __init__(self, files: Iterable[Path] = (), without: Iterable[str] = ()) -> None:
        self.files, self.without = tuple(dict.fromkeys(files)), tuple(without)
        self.registry = Registry()
        self.broken = self.registry.broken
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)

    def notify(self, hook: str, **kwargs: Any) -> list[Any]:
        """Call an event hook; returns what the observers do. One that fails stops the run, which is then unobserved."""
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
        if failed:
            return f"plugin '{failed[-1].rpartition(':')[2]}'"
        return "a plugin"

    def load(self, plugin: _Plugin) -> None:
        """Load one plugin. If that fails, record why and leave no trace; with ALIGNKIT_STRICT, raise PluginError."""
        key = f"{plugin.distribution}:{plugin.name}"
        added: list[tuple[str, Registration]] = []
        try:
            module = plugin.load()
            self.manager.register(module, name=key)
            self.manager.check_pending()  # of a misspelled hook
            if not self.manager.get_hookcallers(module):
                raise PluginError("it registers nothing: no function is marked with @hookimpl")
            for impl in self.manager.hook.register.get_hookimpls():
                if impl.plugin_name == key:
                    impl.function(*[partial(_add, added, plugin, module) for _ in impl.argnames])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes sys.exit() at import
            if self.manager.has_plugin(key):
                self.manager.unregister(name=key)
            version = f"; this is alignkit {__version__}" if isinstance(error, ImportError | AttributeError) else ""
            broken = plugin.unavailable(f"failed to load: {reason_of(error)}{_line(error)}{version}")
            if os.environ.get("ALIGNKIT_STRICT", "") not in ("", "0"):
                raise PluginError(str(broken)) from error
            self.broken.append(broken)
        else:
            for kind, registration in added:
                self.registry.add(kind, registration)


def _add(
    added: list[tuple[str, Registration]],
    plugin: _Plugin,
    module: Any,
    kind: str,
    name: str,
    implementation: Any,
    summary: str = "",
) -> None:
    """The `add` of one plugin. What is no address is checked here, so that a traceback points at the plugin."""
    if kind not in KINDS:
        raise ValueError(f"no kind '{kind}'; {did_you_mean(kind, KINDS) or 'kinds: ' + ', '.join(KINDS)}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith(".") != (kind == "reader"):
        rule = "is a suffix such as '.notes'" if kind == "reader" else "has letters, digits, '.', '_' and '-'"
        raise ValueError(f"{kind} {name!r}: its name {rule}")
    if any(one.name == name for known, one in added if known == kind):
        raise ValueError(f"registers {kind} '{name}' twice")
    file = getattr(module, "__file__", None) or getattr(sys.modules.get(type(module).__module__), "__file__", None)
    origin = (plugin.name, plugin.distribution, plugin.version, Path(file) if file else None)
    one = Registration(name, implementation, summary, *origin, kind)
    if not one.is_address and (wrong := why_not(kind, implementation)):
        raise TypeError(f"{kind} '{name}' {wrong}")
    added.append((kind, one))


def _line(error: BaseException) -> str:
    """` (file.py:12)`: the innermost line of the module that failed; empty if its code did not run."""
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    theirs = [(path, line) for path, line in frames if not path.startswith(_LOADING)]
    inside = [line for path, line in theirs if path == theirs[0][0]]
    if inside:
        return f" ({os.path.basename(theirs[0][0])}:{inside[-1]})"
    return ""


def _installed() -> list[_Plugin]:
    """The installed plugins, from their metadata; nothing is imported. Sorted, as the file system has no order."""
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        name, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
        found.append(_Plugin(point.name, name, version, point.load))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


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


_current: Plugins | None = None


def load_plugins(extra_files: Iterable[Path] | None = None, disabled: Sequence[str] | None = None) -> Plugins:
    """Load the installed plugins and the extra files; `plugins()` returns the result from then on.

    extra_files, disabled: None: what the command line names. Raises RecipeError for a disabled name that no plugin has.
    """
    global _current
    if extra_files is None:
        extra_files = map(Path, plugin_options["--plugin"])
    if disabled is None:
        disabled = plugin_options["--no-plugin"]
    result = Plugins(map(Path, extra_files), disabled)
    found = _installed()
    found += [_Plugin(path.name, path.name, "", partial(import_file, path)) for path in result.files]
    for name in disabled:
        if not any(plugin.is_called(name) for plugin in found):
            known = sorted({plugin.name for plugin in found})
            help = did_you_mean(name, known) or f"installed: {', '.join(known)}"
            raise RecipeError([Problem(f"cannot disable plugin '{name}': no such plugin is installed", help=help)])
    ways = dict.fromkeys(left_out(), LEFT_OUT) | {name: f"--no-plugin {name}" for name in disabled}
    for plugin in found:
        refused = [way for name, way in ways.items() if plugin.is_called(name)]
        if refused:
            result.registry.disabled.append(plugin.unavailable(f"is disabled by {refused[0]}"))
        else:
            result.load(plugin)
    _current = result
    return result


def plugins() -> Plugins:
    """The plugins of this process, loaded on first use."""
    if _current is not None:
        return _current
    return load_plugins()


def source_of(base: str) -> tuple[str, str]:
    """The model source that `model.base` names, and what follows its `NAME://`; both are empty for other bases."""
    name, _, path = base.partition("://")
    return (name, path) if plugins().registry.has("model", name) else ("", "")
