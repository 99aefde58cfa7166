"""Functions that a recipe names, looked for in Python source that does not run."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path

from alignkit.errors import RunFailed, did_you_mean

_ANY = {"globals", "exec", "setattr", "__getattr__"}  # what may bind any name, as an import of everything does


def check_module(name: str, function: str) -> None:
    """Raise RunFailed if an installed module or its function does not exist. What has no source is not checked."""
    places: list[str] | None = None
    origin: str | None = None
    for depth, _ in enumerate(parts := name.split("."), 1):
        whole = ".".join(parts[:depth])
        try:
            found = _spec(whole, places)
        except KeyError:  # a namespace package asks for its parent, which is not imported
            return
        if found is None:
            raise RunFailed(
                f"reward 'python': there is no module {whole}\n"
                f"help: install its package{f', or correct {name}' if depth > 1 else ''}, or name a file with `path`"
            )
        origin, places = found.origin, list(found.submodule_search_locations or ())
        if depth < len(parts) and not places:
            return  # it may add modules when it is imported, as `os` adds `os.path`
    if origin is not None and origin.endswith(".py"):
        check_file(Path(origin), function)


def _spec(name: str, places: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """How a module would be imported. places: folders of its package."""
    for finder in sys.meta_path:
        if (find := getattr(finder, "find_spec", None)) is not None and (found := find(name, places)) is not None:
            spec: importlib.machinery.ModuleSpec = found
            return spec
    return None


def check_file(file: Path, function: str) -> None:
    """Raise RunFailed if a file is no Python, or binds no such name."""
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        raise RunFailed(f"reward 'python': {file} is no Python: {error}") from None
    names = set(_bound(tree))
    if {function, "*"} & names:
        return
    functions = sorted(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    known = [each for each in functions if not each.startswith("_")]
    help = did_you_mean(function, known) or f"its functions: {', '.join(known) or 'none'}"
    raise RunFailed(f"reward 'python': {file} has no function '{function}'\nhelp: {help}")


def _bound(tree: ast.Module) -> Iterator[str]:
    """Every name that is bound anywhere in a file; `*` if others may be."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield "*" if node.name in _ANY else node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)  # or `*`
        elif isinstance(node, ast.Name):
            yield "*" if node.id in _ANY else node.id
