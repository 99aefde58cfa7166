"""Digests of a Python file together with the user's own modules that it imports.

A module is the user's own if it is neither alignkit's, nor of the standard library, nor installed: a neighbor of the
file, a part of its package, or a package that is installed in editable mode. The versions of installed packages tell
their contents.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import alignkit
from alignkit.io.digest import file_digest

_INSTALLED = ("site-packages", "dist-packages")
_PACKAGE = Path(alignkit.__file__).resolve().parent
# Folders of alignkit, in a checkout, and of the standard library.
_FOREIGN = (
    _PACKAGE,
    _PACKAGE.parent / "plugins",
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")),
)


def plugin_digests(file: Path | None) -> dict[str, str] | None:
    """`source_digests` of a plugin's module; None if it has no file."""
    return source_digests(file) if file is not None and file.is_file() else None


def source_digests(file: Path) -> dict[str, str]:
    """Digests by name of a file, all files of its package, and the user's own modules that these import."""
    digests: dict[str, str] = {}
    waiting = [_whole(file.resolve())]
    seen = set(waiting)
    while waiting:
        whole = waiting.pop()
        for path in _files(whole):
            digests[path.relative_to(whole.parent).as_posix()] = file_digest(path)
            names = _imported_names(path.read_bytes()) if path.suffix == ".py" else ()
            for own in (own for name in names for own in _own(name, whole.parent)):
                if own not in seen:
                    seen.add(own)
                    waiting.append(own)
    return digests


def _whole(file: Path) -> Path:
    """The folder of the outermost package that a file is in, or the file."""
    whole = file
    while (whole.parent / "__init__.py").is_file():
        whole = whole.parent
    return whole


def _files(whole: Path) -> Iterator[Path]:
    """A file, or every file of a package, data included, but hidden ones and caches; of other folders the modules."""
    if whole.is_file():
        yield whole
        return
    for path in sorted(whole.rglob("*" if (whole / "__init__.py").is_file() else "*.py")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(whole).parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield path


@lru_cache(maxsize=2048)  # every stage of a run asks
def _imported_names(source: bytes) -> frozenset[str]:
    """Top-level names of what a module imports, without parts of its own package."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return frozenset(names)


def _own(name: str, folder: Path) -> list[Path]:
    """The module or package of a name if it is the user's own; of a namespace package each folder that it is in."""
    if (folder / f"{name}.py").is_file():
        found = [folder / f"{name}.py"]
    elif (folder / name / "__init__.py").is_file():
        found = [folder / name]
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return []
        if spec is None:
            return []
        file = [Path(spec.origin)] if spec.has_location and spec.origin else []
        found = [Path(location) for location in spec.submodule_search_locations or ()] or file
    resolved = (path.resolve() for path in found)
    return [path for path in resolved if not _is_foreign(path)]


def _is_foreign(path: Path) -> bool:
    return any(part in _INSTALLED for part in path.parts) or any(path.is_relative_to(folder) for folder in _FOREIGN)
