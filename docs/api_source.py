"""The source of alignkit as a syntax tree: where public names are, their signatures and their fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMPTY = {"dict": "{}", "list": "[]", "tuple": "()", "set": "set()"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Row = tuple[str, str, str]  # name, type, default


@dataclass(frozen=True)
class Module:
    """A module of alignkit. name: below `alignkit`, such as `data.group`."""

    name: str

    @property
    def path(self) -> Path:
        path = ROOT / "alignkit" / self.name.replace(".", "/")
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    @property
    def text(self) -> str:
        if not self.path.is_file():
            raise ValueError(f"no module alignkit.{self.name}")
        return _read(self.path)

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.text)

    def source(self, node: ast.AST) -> str:
        """A type or default as it is written, on one line."""
        text = " ".join((ast.get_source_segment(self.text, node) or "").split())
        return re.sub(r"([(\[{]) | ?,? ([)\]}])", r"\1\2", text)

    def find(self, name: str) -> ast.stmt:
        """The statement that defines a name."""
        for node in self.tree.body:
            if name in names_in(node):
                return node
        raise ValueError(f"alignkit.{self.name} does not define {name}")

    def functions(self) -> list[str]:
        """The names of its functions and classes, in their order."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [node.name for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]

    def exports(self) -> dict[str, str]:
        """What a package re-exports: name -> module."""
        nodes = [node for node in self.tree.body if isinstance(node, ast.ImportFrom) and node.module]
        found = {alias.asname or alias.name: str(node.module) for node in nodes for alias in node.names}
        return {name: module.removeprefix("alignkit.") for name, module in found.items()}

    def comment(self, node: ast.stmt) -> str:
        """The comment behind an assignment, or the ones above it."""
        lines = self.text.splitlines()
        behind = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")[2]
        above: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.startswith("# "):
                break
            above.insert(0, line[2:])
        return behind or " ".join(above)


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def names_in(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname for alias in node.names if alias.asname}
    return set()


@cache
def _homes() -> dict[str, str]:
    """Every name that `alignkit` exports and its module."""
    node = Module("").find("_WHERE")
    assert isinstance(node, ast.Assign)
    table = ast.literal_eval(node.value)
    return {name: module for module, names in table.items() for name in names.split()}


def home(name: str) -> str:
    """The module that defines a name of `alignkit`."""
    if name not in _homes():
        raise ValueError(f"alignkit does not export {name}")
    return _homes()[name]


def members(name: str) -> Iterator[tuple[Module, str, str]]:
    """The public members of a module or package: where they are, their names and their titles."""
    module, package = Module(name), name.split(".")[0]
    own = module.functions()  # raises if there is no such module
    exports = {each: place for each, place in Module(package).exports().items() if place.startswith(f"{package}.")}
    if not exports:
        yield from ((module, each, f"{name}.{each}") for each in own)
        return
    for each, place in exports.items():
        if name in (package, place) and each in Module(place).functions():
            yield Module(place), each, f"{package}.{each}"


# Fields and methods


def fields(module: Module, node: ast.ClassDef) -> Iterator[Row]:
    """The fields of a dataclass or of options, class attributes, keys of a dict, or members of an enum."""
    if any(module.source(base) == "enum.Enum" for base in node.bases):
        for each in node.body:
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                yield each.targets[0].id, "", module.source(each.value)
        return
    for each in [*node.body, *_own(node)]:
        if not isinstance(each, ast.AnnAssign):
            continue
        name = each.target.attr if isinstance(each.target, ast.Attribute) else module.source(each.target)
        if not name.startswith("_") and name != "options":
            kind = re.sub(r"^ClassVar\[(.*)\]$", r"\1", module.source(each.annotation))
            yield name, kind, default_of(module, each.value)


def _own(node: ast.ClassDef) -> list[ast.stmt]:
    """The statements of the constructor, if the class's attributes are not its parameters."""
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    return made.body if made is not None else []


def default_of(module: Module, value: ast.expr | None) -> str:
    """A field's default as a reader would write it; empty if there is none."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
        return "" if value is None else module.source(value)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if value.func.id in ("field", "Field"):
        if "default_factory" in given:
            factory = module.source(given["default_factory"])
            return EMPTY.get(factory, f"{factory}()")
        first = value.args[0] if value.args else given.get("default")
        return "" if first is None or module.source(first) == "..." else module.source(first)
    return "" if value.func.id.startswith("_") else module.source(value)


def described(node: ast.ClassDef) -> dict[str, str]:
    """The descriptions of options, by name."""
    found = {}
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.value, ast.Call) and isinstance(each.target, ast.Name):
            for keyword in each.value.keywords:
                if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                    found[each.target.id] = str(keyword.value.value)
    return found


def public_methods(node: ast.ClassDef) -> list[Function]:
    functions = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [each for each in functions if not each.name.startswith("_") or each.name == "__getitem__"]


def methods_of(node: ast.ClassDef) -> list[str]:
    return [each.name for each in public_methods(node)]


# Signatures


def arguments(node: Function) -> list[ast.arg]:
    """Everything between the brackets, except the instance or class that a method belongs to."""
    given = node.args
    every = [*given.posonlyargs, *given.args, *filter(None, [given.vararg]), *given.kwonlyargs]
    return [
        each for each in [*every, *filter(None, [given.kwarg])] if each.annotation or each.arg not in ("self", "cls")
    ]


def parameters(node: Function) -> list[str]:
    return [each.arg for each in arguments(node)]


def attributes(node: Function) -> list[str]:
    """What a constructor sets on `self`."""
    targets = [target for each in ast.walk(node) if isinstance(each, ast.Assign) for target in each.targets]
    return [target.attr for target in targets if isinstance(target, ast.Attribute)]


def signature_of(module: Module, node: Function) -> str:
    given = node.args
    places = [*given.posonlyargs, *given.args]
    missing: list[ast.expr | None] = [None] * (len(places) - len(given.defaults))
    defaults: dict[str, ast.expr | None] = {
        each.arg: value for each, value in zip(places, [*missing, *given.defaults], strict=True)
    }
    defaults |= {each.arg: value for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    texts = []
    for each in arguments(node):
        if given.vararg is None and each in given.kwonlyargs[:1]:
            texts.append("*")
        stars = "*" if each is given.vararg else "**" if each is given.kwarg else ""
        kind = f": {module.source(each.annotation)}" if each.annotation else ""
        value = defaults.get(each.arg)
        equals = " = " if kind else "="
        texts.append(f"{stars}{each.arg}{kind}{equals + module.source(value) if value is not None else ''}")
        if each in given.posonlyargs[-1:]:
            texts.append("/")
    returns = f" -> {module.source(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"({', '.join(texts)}){returns}"
