"""YAML files with the place of every value: one file over the file that it `extends`, and overrides over all of them.

YAML 1.2 core rules: only `true` and `false` are booleans, `1e-5` is a number, `017` is seventeen, and `1_000`, `12:30`
and dates are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.text import absolute, exists, expanded, is_file, resolved
from alignkit.kinds import reader_of

Keys = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # counted with aliases expanded: a small file can expand to billions of values
MAX_DEPTH = 64
MAX_SOURCE = 300  # characters; longer source lines are not shown
SCHEMA = "recipe.schema.json"  # next to the shipped recipes
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA}"  # lets editors complete and check keys
TAG = "tag:yaml.org,2002:"
# A component is written `{PLUGIN: {options}}`. Options of different plugins must not be merged.
_COMPONENTS = (
    "algorithm",
    "step",
    "reward",
    "rewards",
    "judge",
    "environment",
    "engine",
    "data",
    "prompts",
    "validation",
)
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # as PyYAML counts lines


@dataclass(frozen=True)
class Mark:
    """The place of a key or a value. line 0: not in a file; `file` then names the override."""

    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    source: str = ""

    def problem(self, message: str, help: str = "") -> Problem:
        """Return a problem at this place."""
        return Problem(message, self.file, self.line, self.column, self.length, self.source, help)


@dataclass
class Node:
    """A value with its place. keys: the places of a mapping's keys."""

    value: Any
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)

    def set(self, key: str, node: Node, mark: Mark) -> None:
        """Write a key of a mapping."""
        self.value[key], self.keys[key] = node, mark

    def plain(self) -> Any:
        """The value as plain data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def walk(self, keys: Keys = ()) -> Iterator[tuple[Keys, Node]]:
        """The node and all below it, each with its keys."""
        yield keys, self
        for key, node in self.children():
            yield from node.walk((*keys, key))

    def children(self) -> Iterator[tuple[str | int, Node]]:
        """The nodes of a mapping by key, or of a list by index."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)


@dataclass
class Document:
    """A recipe as written. problems: of overrides, which were left out."""

    path: Path
    root: Node
    problems: list[Problem] = field(default_factory=list)

    def find(self, keys: Keys) -> tuple[Mark, Node, bool]:
        """The mark of a key and its node; of the nearest mapping around it if the key is not there, and False."""
        mark, node = Mark(str(self.path)), self.root
        for key in keys:
            child = dict(node.children()).get(key)
            if child is None:
                return mark, node, False
            mark, node = node.keys.get(str(key), child.mark), child
        return mark, node, True

    def has(self, keys: Keys) -> bool:
        """Whether something is written there."""
        return self.find(keys)[2]

    def problem(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "") -> Problem:
        """Return a problem at a key or its value. If the path is not in the file, point at its nearest parent's key."""
        mark, node, found = self.find(keys)
        return (node.mark if found and not at_key else mark).problem(message, help)


class Failed(RecipeError):
    """A problem that prevents reading anything else."""

    def __init__(self, problem: Problem):
        super().__init__([problem])


# --- one text


class _Loader(yaml.SafeLoader):
    """Composes nodes by YAML 1.2 core rules."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's way to drop the YAML 1.1 rules)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else, such as '1e-5', which is text in YAML 1.1."""


# Tag -> the texts that have it, and their first characters.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
}
for _name, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def dump(data: Any) -> str:
    """Return plain data as YAML that is read as the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


# Tag -> a scalar's value. PyYAML's own constructors follow YAML 1.1, where 017 is octal.
_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
    "str": str,
}


class Reader:
    """Turns one YAML text into nodes and collects every problem. file: its path, or the name of an override."""

    def __init__(self, text: str, file: str, in_file: bool = True):
        self.text, self.file, self.in_file = text, file, in_file
        self.lines = [*_LINE_BREAK.split(text), ""]  # errors may be behind the last line
        self.problems: list[Problem] = []
        self.count = 0

    def read(self) -> Node:
        """Return the root node. Raises Failed if the text cannot be read at all."""
        try:
            root = _Loader(self.text).get_single_node()
        except yaml.reader.ReaderError as error:
            before = _LINE_BREAK.split(self.text[: error.position])
            mark = self._mark(len(before) - 1, len(before[-1]))
            raise Failed(mark.problem(f"not valid YAML: {error.reason}")) from None
        except yaml.MarkedYAMLError as error:
            raise Failed(self._syntax(error)) from None
        except RecursionError:
            raise Failed(Mark(self.file).problem(f"nested deeper than {MAX_DEPTH} levels")) from None
        return Node(None, self._mark(0, 0)) if root is None else self._convert(root, 1)

    def _mark(self, line: int, column: int, length: int = 1) -> Mark:
        """Return the mark of a place, counted from 0. For an override, return a mark without line and column."""
        if not self.in_file:
            return Mark(self.file)
        source = self.lines[line] if column + length <= MAX_SOURCE else ""
        return Mark(self.file, line + 1, column + 1, length, source[:MAX_SOURCE].rstrip())

    def _of(self, node: yaml.Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        stop = end.column
        if end.line != start.line:
            stop = len(self.lines[start.line].split(" #")[0].rstrip())
        return self._mark(start.line, start.column, max(1, stop - start.column))

    def _syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        """Return a syntax error with its place and help."""
        mark = error.problem_mark or error.context_mark
        text = error.problem or "syntax error"
        if error.context:
            text += f" ({error.context})"
        help = "check the indentation; text that contains ': ' needs quotes" if "mapping values" in text else ""
        if mark is None:
            return Mark(self.file).problem(f"not valid YAML: {text}", help)
        line, column = mark.line, mark.column
        if not self.lines[line].strip():  # at the end of the file: show the last text
            line = max((i for i, text in enumerate(self.lines[: line + 1]) if text.strip()), default=0)
            column = len(self.lines[line].rstrip())
        return self._mark(line, column).problem(f"not valid YAML: {text}", help)

    def _convert(self, node: yaml.Node, depth: int) -> Node:
        mark = self._of(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise Failed(mark.problem(f"expands to more than {MAX_NODES} values (every use of an alias counts)"))
        if depth > MAX_DEPTH:
            raise Failed(mark.problem(f"nested deeper than {MAX_DEPTH} levels (an alias inside its own anchor?)"))
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, mark, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return Node([self._convert(child, depth + 1) for child in node.value], mark)
        if isinstance(node, yaml.ScalarNode) and kind in _VALUES:
            return Node(self._value(node, kind, mark), mark)
        tag = node.tag.replace(TAG, "!!", 1)
        self.problems.append(mark.problem(f"the tag '{tag}' is not allowed: recipes are plain data"))
        return Node(None, mark)

    def _value(self, node: yaml.ScalarNode, kind: str, mark: Mark) -> Any:
        try:
            node.value.encode()  # fails for an escape such as "\ud800", which is not a character
            return _VALUES[kind](node.value)
        except ValueError:
            self.problems.append(mark.problem(f"cannot be read as '!!{kind}'"))
            return None

    def _mapping(self, node: yaml.MappingNode, mark: Mark, depth: int) -> Node:
        result = Node({}, mark)
        for key_node, value_node in node.value:
            at = self._of(key_node)
            value = self._convert(value_node, depth + 1)
            key = self._key(key_node, at)
            if key in result.keys:
                self.problems.append(at.problem(f"duplicate key '{key}'"))
            elif key is not None:
                result.set(key, value, at)
        return result

    def _key(self, node: yaml.Node, mark: Mark) -> str | None:
        is_text = node.tag == TAG + "str"
        if not isinstance(node, yaml.ScalarNode) or not is_text or (node.value == "<<" and node.style is None):
            help = "write it in quotes; files are merged with 'extends:'"
            self.problems.append(mark.problem("a key must be text, and merge keys are not supported", help))
            return None
        return str(self._value(node, "str", mark))


# --- files


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe's files, merge them and apply overrides. Raises RecipeError with every problem of the files."""
    problems: list[Problem] = []
    try:
        root = _file(path, path, problems)
    except Failed as failed:
        raise RecipeError([*problems, *failed.problems]) from None
    return _document(path, root, problems, overrides)


def parse_document(text: str, path: Path, overrides: Sequence[str] = ()) -> Document:
    """The same for a text that is in no file. path: names it in errors; relative paths start at its folder."""
    reader = Reader(text, str(path))
    return _document(path, reader.read(), reader.problems, overrides)


def plain_data(text: str, name: str) -> Any:
    """YAML as plain data. name: of the text, in errors. Raises RecipeError if it cannot be read."""
    return parse_document(text, Path(name)).root.plain()


def plain_file(path: Path, what: str) -> Document:
    """A YAML file that is no recipe. what: it is, in errors. Raises RecipeError if it cannot be read."""
    return parse_document(_text(path, what), path)


def _document(path: Path, root: Node, problems: list[Problem], overrides: Sequence[str]) -> Document:
    document = Document(path, root)
    for text in overrides:
        try:
            _override(document, text)
        except Failed as failed:
            document.problems += failed.problems
    if problems:
        raise RecipeError([*problems, *document.problems])
    return document


def _text(path: Path, what: str = "recipe") -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Failed(Problem(f"cannot read the {what}: {str(error.strerror).lower()}", str(path))) from None
    if len(raw) > MAX_BYTES:
        raise Failed(Problem(f"the file is larger than 1 MiB, so it cannot be a {what}", str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode().split("\n")
        mark = Reader(raw.decode(errors="replace"), str(path))._mark(len(before) - 1, len(before[-1]))
        raise Failed(mark.problem(f"not valid UTF-8: byte 0x{raw[error.start]:02x}")) from None


def _file(path: Path, recipe: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> Node:
    """Return the nodes of a file, merged over those of the file that it extends. chain: the files that led to it."""
    reader = Reader(_text(path), str(path))
    root = reader.read()
    problems += reader.problems
    if root.value is None and not reader.problems:
        raise Failed(Mark(str(path)).problem("the file is empty"))
    if not isinstance(root.value, dict):
        raise Failed(root.mark.problem("a recipe must be a mapping with 'model:' and 'stages:'"))
    base = root.value.pop("extends", None)
    _start_at(root, path.parent, recipe)
    if base is None or base.value is None:
        return root
    if not isinstance(base.value, str):
        raise Failed(base.mark.problem("'extends' must be the name of one file"))
    chain = (*chain, resolved(path))
    target = path.parent / base.value
    if not is_file(target):
        target = shipped_recipe(base.value) or target
    if not is_file(target):
        guess = did_you_mean(base.value, shipped())
        help = guess or "write a path from the folder of this file, or the name of a shipped recipe"
        raise Failed(base.mark.problem(f"no such file: {target}", help))
    if resolved(target) in chain:
        names = " -> ".join(item.name for item in (*chain, target))
        raise Failed(base.mark.problem(f"files extend each other in a cycle: {names}"))
    return _merge(_file(target, recipe, problems, chain), root)


def _start_at(root: Node, folder: Path, recipe: Path) -> None:
    """Make the paths in a file that is elsewhere absolute: those of a recipe start at the recipe's folder.

    A text is a path if it is no plain word, and names a file or a folder, or a file that runs write. One that is only
    in the recipe's folder is missing.
    """
    if resolved(folder) == resolved(recipe.parent):
        return
    for _, node in root.walk():
        if isinstance(node.value, str):
            name, separator, rest = node.value.rpartition("://")
            path = absolute(folder / expanded(rest))
            reader = reader_of(path)
            is_path = exists(path) or exists(recipe.parent / rest) or (reader and reader.grows)
            if is_path and re.search(r"[./~]", rest):
                node.value = f"{name}{separator}{path}"


def _merge(base: Node, over: Node, key: str = "") -> Node:
    """Return `over` on top of `base`: mappings are merged, anything else is replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if key in _COMPONENTS and not base.value.keys() & over.value.keys():
        return over
    result = Node(dict(base.value), over.mark, dict(base.keys))
    for name, node in over.value.items():
        merged = _merge(base.value[name], node, name) if name in base.value else node
        result.set(name, merged, over.keys[name])
    return result


# --- overrides: `a.b=c` sets a value, `~a.b` deletes one


def _override(document: Document, text: str) -> None:
    """Apply an override. Raises Failed if that is impossible."""
    mark, new = Mark(f"override '{text}'"), None
    path, equals, value = text.partition("=")
    names = path.strip().removeprefix("~").split(".")
    if not all(names) or path.startswith("~") == bool(equals):
        raise Failed(mark.problem("an override must be key.path=value, or ~key.path to delete a key"))
    if names[0] == "extends":
        raise Failed(mark.problem("'extends' cannot be overridden: it is applied before overrides"))
    if equals:
        reader = Reader(value, mark.file, in_file=False)
        new = reader.read()
        document.problems += reader.problems
        _start_at(new, Path.cwd(), document.path)
    node = document.root
    for depth, name in enumerate(names, 1):
        key: Any = name
        if isinstance(node.value, list) and name.isdecimal():
            key = int(name)
        elif node.value in (None, name):  # `ppo` becomes `{ppo: {}}`
            node.value = {}
        children = dict(node.children())
        misspelled = depth == 2 < len(names) and names[0] == "stages"  # would be a new stage
        if key not in children and (new is None or misspelled or not isinstance(node.value, dict)):
            help = did_you_mean(name, map(str, children)) or f"keys there: {', '.join(map(str, children)) or 'none'}"
            if isinstance(node.value, str):
                help = f"write '{'.'.join(names[: depth - 1])}.{node.value}.{name}=...' for an option of {node.value}"
            raise Failed(mark.problem(f"no such key: '{'.'.join(names[:depth])}'", help))
        child = children.get(key) or Node({}, mark)
        if depth == len(names):
            if new is None:
                del node.value[key]
                return
            child = new
        if child is not children.get(key):
            node.value[key], node.keys[name] = child, mark
        node = child


# --- the recipes that come with alignkit, found by name from any folder


def shipped_folder() -> Path:
    """The folder of the shipped recipes: a checkout's, or the one installed next to the package."""
    root = Path(__file__).resolve().parents[2]
    installed = root / "alignkit_recipes"
    return installed if installed.is_dir() else root / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}


def shipped_recipe(text: str) -> Path | None:
    """The shipped recipe that is meant by `quickstart` or `recipes/quickstart.yaml`; None if there is none."""
    return shipped().get(text.removeprefix("recipes/").removesuffix(".yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or by the name of a shipped recipe. Raises RecipeError."""
    path = Path(name)
    if is_file(path):
        return path
    if found := shipped_recipe(str(name)):
        return found
    help = did_you_mean(path.stem, shipped()) or f"shipped recipes: {', '.join(shipped())}"
    raise RecipeError([Problem(f"no such recipe: {name}", help=help)])
