"""Digests of a Python file together with the user's own modules that it imports.

A module is the user's own if it is neither alignkit's, nor of the standard library, nor installed: a neighbor of the
file, a part of its package, or a package that is installed in editable mode. The versions of installed packages tell
their contents.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import alignkit
from alignkit.io.digest import file_digest

_INSTALLED = ("site-packages", "dist-packages")


PACKAGE = Path(alignkit.__file__).resolve().parent
# What numbers depend on. Commands, reports and checks of recipes are left out: to edit them recomputes nothing.
COMPUTING = ("data", "functional", "kernels", "models", "tokens", "training")
OTHER_PACKAGES = ("alignkit_apps", "alignkit_distributed", "alignkit_http", "alignkit_monitors")
_OTHER = ("__main__", "arguments", "cli", "commands", "hookspecs", "notebook", "plugins", "registry", "report")


def computing_code(package: Path = PACKAGE, rooms: Sequence[str] = COMPUTING) -> dict[str, str]:
    """Digests of alignkit's modules that numbers depend on, by their paths below the package.

    Those of several processes, which also compute, and monitors, which end stages, are in packages next to it.
    """
    files = [path for path in package.glob("*.py") if path.stem not in _OTHER]
    files += [path for room in rooms for path in (package / room).rglob("*.py")]
    digests = {path.relative_to(package).as_posix(): file_digest(path) for path in sorted(files)}
    folders = [root / name for root in _roots(package) for name in ("alignkit_distributed", "alignkit_monitors")]
    more = sorted(path for folder in folders for path in folder.glob("*.py"))
    return digests | {f"{path.parent.name}/{path.name}": file_digest(path) for path in more}


def _roots(package: Path) -> tuple[Path, Path]:
    """Where alignkit's other packages are: next to it in a wheel, and in `plugins/` of a checkout."""
    return package.parent, package.parent / "plugins"


def plugin_digests(file: Path | None) -> dict[str, str] | None:
    """`source_digests` of a plugin's module; None if it has no file."""
    return source_digests(file) if file is not None and file.is_file() else None


def source_digests(file: Path) -> dict[str, str]:
    """Digests by module name of a file, all files of its package, and the user's modules that these import."""
    file = file.resolve()
    top = _top_package(file)
    found: dict[str, str] = {}
    root = file.parent if top is None else top.parent
    waiting = [_Module(file.name, file)] if top is None else list(_package_files(top))
    seen = {module.file for module in waiting}  # a package's file keeps its name, also if another one imports it
    while waiting:
        module = waiting.pop()
        found[module.name] = file_digest(module.file)
        for other in _imported(module.file, root, top) if module.file.suffix == ".py" else ():
            if other.file not in seen:
                seen.add(other.file)
                waiting.append(other)
    return found


@dataclass(frozen=True)
class _Module:
    """A file of the user's, and its name, which does not depend on the folder it is in."""

    name: str
    file: Path


def _top_package(file: Path) -> Path | None:
    """The folder of the outermost package that a file is in."""
    top = None
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        top = folder
    return top


def _package_files(top: Path) -> Iterator[_Module]:
    """Every file of a package, data included, but hidden ones and caches."""
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top.parent)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield _Module(name.as_posix(), path)


def _imported(file: Path, root: Path, top: Path | None) -> Iterator[_Module]:
    """The user's own modules that a file imports, anywhere in its code. root: the folder of the first file."""
    package = _top_package(file)
    roots = [root] if package is None else [package.parent, root]
    for name in _imported_names(file, file.read_bytes()):
        yield from _located(name, roots, top)


@lru_cache(maxsize=2048)  # every stage of a run asks
def _imported_names(file: Path, source: bytes) -> set[str]:
    """Absolute names of modules; some are names inside a module. source: what the file contains."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(node, file)
            names |= {".".join(filter(None, (base, alias.name))) for alias in node.names} | ({base} if base else set())
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            names.add(node.args[0].value)  # type: ignore[attr-defined]  # `_imports_by_name` has checked it
    return names


def _base_of(node: ast.ImportFrom, file: Path) -> str:
    """The absolute name of the module after `from`."""
    if not node.level:
        return node.module or ""
    top = _top_package(file)
    package = () if top is None else file.parent.relative_to(top.parent).parts
    parts = package[: len(package) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _imports_by_name(node: ast.Call) -> bool:
    """Whether the call is `import_module("name")` or `__import__("name")`."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    named = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return function in ("import_module", "__import__") and named


def _located(name: str, roots: Sequence[Path], top: Path | None) -> Iterator[_Module]:
    """The files of the modules that importing `a.b.c` runs: those of `a`, `a.b` and `a.b.c`, if they are the user's."""
    first, *rest = name.split(".")
    folders = _folders_of(first, roots)
    for depth, part in enumerate([first, *rest]):
        module = ".".join([first, *rest[:depth]])
        files = [file for folder in folders for file in (folder / part / "__init__.py", folder / f"{part}.py")]
        file = next((file for file in files if file.is_file()), None)
        if file is not None and _is_own(file, top):
            yield _Module(module, file.resolve())
        folders = [folder / part for folder in folders]


def _folders_of(name: str, roots: Sequence[Path]) -> list[Path]:
    """The folders that contain a top-level module or package: roots, or those that Python searches.

    Only a namespace package is in several, each of which has a portion of it.
    """
    for root in roots:
        if (root / f"{name}.py").is_file() or (root / name / "__init__.py").is_file():
            return [root]
    portions = [root for root in roots if (root / name).is_dir()]
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError, AttributeError):
        return portions
    if spec is None:
        return portions
    if spec.submodule_search_locations:
        return portions + [Path(location).parent for location in spec.submodule_search_locations]
    return [*portions, Path(spec.origin).parent] if spec.has_location and spec.origin else portions


def _is_own(file: Path, top: Path | None) -> bool:
    file = file.resolve()
    if top is not None and file.is_relative_to(top):
        return True
    installed = any(part in _INSTALLED for part in file.parts)
    return not installed and not any(file.is_relative_to(folder) for folder in _foreign_folders())


@cache
def _foreign_folders() -> tuple[Path, ...]:
    """Folders of alignkit and the standard library."""
    others = [root / name for root in _roots(PACKAGE) for name in OTHER_PACKAGES]
    paths = sysconfig.get_paths()
    return (PACKAGE, *others, *(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib")))
