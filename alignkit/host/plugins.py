"""Find and load plugins. A broken plugin breaks only itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import pluggy

import alignkit
from alignkit.contract import hookspecs
from alignkit.contract.kinds import Launcher, Reader
from alignkit.data.files import suffix_of
from alignkit.errors import PluginError, did_you_mean, reason_of, refuse
from alignkit.host import plugin_options
from alignkit.host.calls import attributed_to, line_in
from alignkit.host.registry import DEFAULTS, KINDS, PRIVATE, Origin, Registration, Registry, moved
from alignkit.io.opened import watch

GROUP = "alignkit"
_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*")  # a reader's name is a suffix, such as .csv
# Before a module's name, so that a file `json.py` does not hide the standard one
_OF_FILES = "alignkit_plugin_file_"


@dataclass
class _Plugin:
    """A plugin that is not loaded yet, and what it then adds."""

    origin: Origin
    module: str
    load: Callable[[], Any]
    added: list[Registration] = field(default_factory=list)

    @property
    def package(self) -> str:
        """The package of its module."""
        return self.module.partition(".")[0]

    @property
    def names(self) -> set[str]:
        """What `--no-plugin` calls it."""
        return {self.origin.plugin, f"{self.origin.distribution}:{self.origin.plugin}"}

    def add(
        self,
        kind: str,
        name: str,
        implementation: Any,
        summary: str = "",
        *,
        default: bool = False,
    ) -> None:
        """See `hookspecs.Add`. An implementation that is not an address is checked here, so that a
        traceback points at the plugin.
        """
        if kind not in KINDS | PRIVATE:
            raise ValueError(f"no kind '{kind}'; {did_you_mean(kind, KINDS, 'kinds')}")
        if not _NAME.fullmatch(name) or name.startswith(".") != (kind == "reader"):
            rule = (
                "a name has letters, digits, '.', '_' and '-', and only a reader's begins with '.'"
            )
            raise ValueError(f"{kind} {name!r}: {rule}")
        if default and kind not in DEFAULTS:
            raise ValueError(f"{kind} {name!r}: only {', '.join(DEFAULTS)} can be a default")
        file = Path(str(sys.modules[self.module].__file__))
        registration = Registration(
            name, implementation, summary, kind, file, default, **vars(self.origin)
        )
        if not registration.is_address:
            registration.check(implementation)
        self.added.append(registration)


class Plugins(Registry):
    """The installed plugins, and what recipes can name of them.

    manager: pluggy's, which calls event hooks. files, without: the extra files and the disabled
    names; another process loads the same plugins with them.
    """

    def __init__(self, files: Iterable[Path], without: Iterable[str]) -> None:
        super().__init__()
        self.files, self.without = tuple(dict.fromkeys(files)), tuple(without)
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)

    def ask(self, kind: str, *args: Any) -> Iterator[Any]:
        """What each function of a kind returns, if it has something to say."""
        for one in self.registrations(kind):
            with attributed_to(one.implementation, "", one.label):
                answer = one.implementation(*args)
            if answer:
                yield answer

    def notify(self, hook: str, **kwargs: Any) -> None:
        """Call an event hook. An observer that fails stops the run, which is then unobserved."""
        caller = getattr(self.manager.hook, hook)
        try:
            caller(**kwargs)
        except (Exception, SystemExit) as error:
            ran = {frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__)}
            # Wrappers, which are in the traceback of all others, are last
            for impl in caller.get_hookimpls():
                if impl.function.__module__ in ran:
                    with attributed_to(impl.function, "", impl.plugin_name):
                        raise
            raise

    def load(self, plugin: _Plugin) -> None:
        """Load one plugin. If that fails, record why and leave no trace."""
        label = plugin.origin.label
        try:
            module = plugin.load()
            self.manager.register(module, name=label)
            self.manager.check_pending()  # raises for a misspelled hook
            if not self.manager.get_hookcallers(module):
                raise PluginError("it registers nothing: no function is marked with @hookimpl")
            for impl in self.manager.hook.register.get_hookimpls():
                if impl.plugin_name == label:
                    impl.function(*[plugin.add for _ in impl.argnames])
        except (Exception, SystemExit) as error:
            if self.manager.has_plugin(label):
                self.manager.unregister(name=label)
            reason = f"{reason_of(error)}{line_in(error, [plugin.module])}{moved(error)}"
            self.broken.append(replace(plugin.origin, reason=reason))
        else:
            for registration in plugin.added:
                self.add(registration)


def _installed() -> list[_Plugin]:
    """The installed plugins, from their metadata; nothing is imported. Sorted, as the file system
    has no order.
    """
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        assert point.dist is not None  # as it is installed
        origin = Origin(plugin=point.name, distribution=point.dist.name, version=point.dist.version)
        found.append(_Plugin(origin, point.module, point.load))
    return sorted(found, key=lambda plugin: (plugin.origin.plugin, plugin.origin.distribution))


def _of_file(path: Path) -> _Plugin:
    origin = Origin(plugin=path.name, distribution=path.name)
    return _Plugin(origin, f"{_OF_FILES}{path.stem}", partial(import_file, path))


def import_file(path: Path) -> ModuleType:
    """The module of a file that is not on Python's path. Raises what its import raises, and for a
    path without one.
    """
    name = f"{_OF_FILES}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look it up while it runs
    spec.loader.exec_module(module)
    return module


_current: Plugins | None = None


def load_plugins(
    extra_files: Iterable[Path] | None = None, disabled: Sequence[str] | None = None
) -> Plugins:
    """Load the installed plugins and the extra files; `plugins()` returns the result from then on.

    extra_files, disabled: None: what the command line names. Raises RecipeError for a disabled name
    that no plugin has.
    """
    global _current
    installed = _installed()
    watch(one.package for one in installed if one.origin.distribution == alignkit.__name__)
    if extra_files is None:
        extra_files = map(Path, plugin_options["--plugin"])
    if disabled is None:
        disabled = plugin_options["--no-plugin"]
    result = Plugins(extra_files, disabled)
    found = [*installed, *map(_of_file, result.files)]
    names = set[str]().union(*(plugin.names for plugin in found))
    for name in disabled:
        if name not in names:
            help = did_you_mean(name, names) or "`alignkit plugins` lists what is installed"
            refuse(f"cannot disable plugin '{name}': no such plugin is installed", help)
    for plugin in found:
        if plugin.names.isdisjoint(disabled):
            result.load(plugin)
    _current = result
    return result


def plugins() -> Plugins:
    """The plugins of this process, loaded on first use."""
    if _current is not None:
        return _current
    return load_plugins()


def reader_of(path: Path | None) -> Reader | None:
    """The reader of a file; None for one of JSON or text, and if no plugin reads its suffix.

    Raises PluginError if several plugins read it.
    """
    registration = registration_of(path)
    if registration is None:
        return None
    return registration.implementation()


def registration_of(path: Path | None) -> Registration | None:
    """Where the reader of a file is from; None: of data without a file. See `reader_of`."""
    if path is None:
        return plugins().only("reader") if plugins().defaults("reader") else None
    suffix = suffix_of(path)
    if not plugins().has("reader", suffix):
        return None
    return plugins().get("reader", suffix)


def launcher() -> Launcher:
    """What starts several processes. Raises PluginError if no plugin does."""
    made: Launcher = plugins().only("launcher").implementation()
    return made
