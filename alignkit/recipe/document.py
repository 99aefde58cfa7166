"""YAML file -> plain data in which every key and value knows where it was written.

YAML 1.2 core rules: only `true` and `false` are booleans, `1e-5` is a number, `017` is seventeen, and `1_000`, `12:30`
and dates are text. Files compose by `extends:`; overrides (`a.b=c`, `~a.b`) are applied last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import Problem, RecipeError, did_you_mean

Keys = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # counted with aliases expanded: a small file can stand for billions of values
MAX_DEPTH = 64
_MAX_SOURCE = 300  # longer source lines are not shown
_TAG = "tag:yaml.org,2002:"
# Components are named by the only key of a mapping, so two mappings here that name different things don't mix.
_COMPONENTS = frozenset({"algorithm", "step", "reward", "rewards", "judge", "data", "prompts", "validation"})
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # as PyYAML counts lines


@dataclass(frozen=True)
class Mark:
    """Where something was written; line 0: not in a file (`file` then names the override)."""

    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    source: str = ""

    def problem(self, message: str, help: str = "") -> Problem:
        """A problem at this place."""
        return Problem(message, self.file, self.line, self.column, self.length, self.source, help)


@dataclass
class _Node:
    """A value with its place; of a mapping also the places of its keys."""

    value: Any
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)


@dataclass
class Document:
    """Plain data and, for every path in it, the marks of its key and of its value."""

    path: Path
    data: Any
    places: dict[Keys, tuple[Mark, Mark]]

    def problem(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "") -> Problem:
        """A problem at a key or its value; what is not in the file is laid at its nearest parent's key."""
        present = keys
        while present not in self.places:
            present = present[:-1]
        key, value = self.places[present]
        return (key if at_key or present != keys else value).problem(message, help)

    def overridden(self, keys: Keys) -> bool:
        """Whether an override wrote this value."""
        return keys in self.places and not self.places[keys][1].line

    def folder(self, keys: Keys) -> Path:
        """The folder where relative paths written here start: that of the file in which they stand."""
        mark = self.places[keys][1] if keys in self.places else None
        return Path(mark.file).parent if mark and mark.line else self.path.parent


class _Failed(Exception):
    def __init__(self, problem: Problem):
        self.problem = problem


# --- one YAML text -> nodes


class _Loader(yaml.SafeLoader):
    """Composes nodes by YAML 1.2 core rules and stops at too deep nesting before Python does."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's way to drop the YAML 1.1 rules)

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (_INT.pattern, list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def _scalar(kind: str, text: str) -> Any:
    """A scalar's Python value; PyYAML's own constructors follow YAML 1.1 (017 is octal there)."""
    if kind != "str" and not re.fullmatch(_CORE[kind][0], text):
        raise ValueError(text)
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


class _Reader:
    """Turns one YAML text into nodes, collecting every problem on the way."""

    def __init__(self, text: str, file: str, in_file: bool = True):
        self.text, self.file, self.in_file = text, file, in_file
        self.lines = _LINE_BREAK.split(text)
        self.problems: list[Problem] = []
        self.count = 0

    def read(self) -> _Node:
        """The root node; raises `_Failed` where nothing can be made of the text."""
        try:
            root = _Loader(self.text).get_single_node()
        except yaml.reader.ReaderError as error:
            raise _Failed(self._at(error.position).problem(f"not valid YAML: {error.reason}")) from None
        except yaml.MarkedYAMLError as error:
            raise _Failed(self._syntax(error)) from None
        except RecursionError:
            raise _Failed(Mark(self.file).problem("nested too deeply")) from None
        if root is None:
            return _Node(None, self._mark(0, 0))
        return self._convert(root, 1)

    def _mark(self, line: int, column: int, length: int = 1) -> Mark:
        """A mark from a place that counts from 0; in an override there is no place, only the override."""
        if not self.in_file:
            return Mark(self.file)
        source = self.lines[line] if line < len(self.lines) else ""
        shown = source if column + length <= _MAX_SOURCE else ""
        return Mark(self.file, line + 1, column + 1, length, shown[:_MAX_SOURCE].rstrip())

    def _at(self, position: int) -> Mark:
        before = _LINE_BREAK.split(self.text[:position])
        return self._mark(len(before) - 1, len(before[-1]))

    def _of(self, node: yaml.Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column if end.line == start.line else len(line.split(" #")[0].rstrip())
        return self._mark(start.line, start.column, max(1, stop - start.column))

    def _syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        text = error.problem or "syntax error"
        if error.context:
            text += f" ({error.context})"
        help = ""
        if "mapping values are not allowed" in text:
            help = "check the indentation; text that contains ': ' needs quotes"
        elif "'\\t'" in text:
            help = "indent with spaces, not tabs"
        if mark is None:
            return Mark(self.file).problem(f"not valid YAML: {text}", help)
        line, column = mark.line, mark.column
        if line >= len(self.lines) or not self.lines[line].strip():  # the end of the file: show what is unfinished
            line = max((i for i, text in enumerate(self.lines[: line + 1]) if text.strip()), default=0)
            column = len(self.lines[line].rstrip())
        return self._mark(line, column).problem(f"not valid YAML: {text}", help)

    def _convert(self, node: yaml.Node, depth: int) -> _Node:
        mark = self._of(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Failed(mark.problem(f"stands for more than {MAX_NODES} values (aliases counted each time)"))
        if depth > MAX_DEPTH:  # an alias inside its own anchor
            raise _Failed(mark.problem(f"nested deeper than {MAX_DEPTH} levels (an alias inside its own anchor?)"))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, mark, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return _Node([self._convert(child, depth + 1) for child in node.value], mark)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", *_CORE):
            return _Node(self._value(node, kind, mark), mark)
        self.problems.append(mark.problem(f"the tag '{_short(node.tag)}' is not allowed: recipes hold plain data"))
        return _Node(None, mark)

    def _value(self, node: yaml.ScalarNode, kind: str, mark: Mark) -> Any:
        try:
            value = _scalar(kind, node.value)
            if isinstance(value, str):
                value.encode()  # an escape such as "\ud800" is no character
        except UnicodeEncodeError:
            self.problems.append(mark.problem("not valid text: half of a surrogate pair"))
            return ""
        except ValueError:
            self.problems.append(mark.problem(f"cannot be read as '{_short(_TAG + kind)}'"))
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, mark: Mark, depth: int) -> _Node:
        result = _Node({}, mark)
        for key_node, value_node in node.value:
            key_mark = self._of(key_node)
            value = self._convert(value_node, depth + 1)
            key = self._key(key_node, key_mark)
            if key is None:
                continue
            if key in result.value:
                first = result.keys[key]
                where = f"first in line {first.line}" if first.line else "in the override"
                self.problems.append(key_mark.problem(f"the key '{key}' is given twice ({where})"))
                continue
            result.value[key] = value
            result.keys[key] = key_mark
        return result

    def _key(self, node: yaml.Node, mark: Mark) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.problems.append(mark.problem("a key must be text, not a list or mapping"))
        elif node.tag != _TAG + "str":
            self.problems.append(mark.problem(f"a key must be text: write '{node.value}' in quotes"))
        elif node.value == "<<" and node.style is None:
            self.problems.append(mark.problem("merge keys ('<<') are not supported", "compose files with 'extends:'"))
        else:
            return str(self._value(node, "str", mark))
        return None


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag


# --- files and their composition


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error).lower()
        raise _Failed(Problem(f"cannot read the recipe: {reason}", str(path))) from None
    if len(raw) > MAX_BYTES:
        raise _Failed(Problem("larger than 1 MiB: this is no recipe", str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        lines = before.split("\n")
        message = f"not valid UTF-8: byte 0x{raw[error.start]:02x}"
        shown = raw.split(b"\n")[len(lines) - 1].decode("utf-8", "replace").rstrip()[:_MAX_SOURCE]
        raise _Failed(Problem(message, str(path), len(lines), len(lines[-1]) + 1, 1, shown)) from None


def _load_file(path: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> _Node:
    """The nodes of a file merged over those of the file that it extends."""
    reader = _Reader(_read_text(path), str(path))
    root = reader.read()
    problems += reader.problems
    if root.value is None and not reader.problems:
        raise _Failed(Mark(str(path)).problem("the file is empty"))
    if not isinstance(root.value, dict):
        raise _Failed(root.mark.problem("a recipe is a mapping: 'model: ...' and 'stages: ...'"))
    base = root.value.pop("extends", None)
    root.keys.pop("extends", None)
    if base is None or base.value is None:
        return root
    if not isinstance(base.value, str):
        raise _Failed(base.mark.problem("'extends' names one file"))
    return _merge(_load_base(path, base, problems, (*chain, path.resolve())), root)


def _load_base(path: Path, base: _Node, problems: list[Problem], chain: tuple[Path, ...]) -> _Node:
    target = path.parent / base.value
    if target.resolve() in chain:
        names = " -> ".join(item.name for item in (*chain, target))
        raise _Failed(base.mark.problem(f"files extend each other in a circle: {names}"))
    if len(chain) > MAX_DEPTH:
        raise _Failed(base.mark.problem(f"more than {MAX_DEPTH} files extend each other"))
    if not target.is_file():
        raise _Failed(base.mark.problem(f"no such file: {target}", "the path starts at the folder of this file"))
    return _load_file(target, problems, chain)


def _merge(base: _Node, over: _Node, key: str = "") -> _Node:
    """`over` on top of `base`, mapping into mapping; anything else replaces."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if key in _COMPONENTS and not base.value.keys() & over.value.keys():
        return over
    result = _Node(dict(base.value), over.mark, dict(base.keys))
    for name, node in over.value.items():
        result.value[name] = _merge(base.value[name], node, name) if name in base.value else node
        result.keys[name] = over.keys[name]
    return result


# --- overrides


def _override(root: _Node, text: str, problems: list[Problem]) -> None:
    """Apply `a.b=c` or `~a.b`."""
    mark = Mark(f"override '{text}'")
    delete = text.startswith("~") and "=" not in text
    path, equals, value = text.removeprefix("~" if delete else "").partition("=")
    segments = path.strip().split(".")
    if not all(segments) or not (delete or equals):
        raise _Failed(mark.problem("an override is written key.path=value, or ~key.path to delete"))
    if segments[0] == "extends":
        raise _Failed(mark.problem("'extends' cannot be overridden: it was applied before"))
    if delete:
        _delete(root, segments, mark)
        return
    _require_stage(root, segments, mark)
    reader = _Reader(value, mark.file, in_file=False)
    node = reader.read()
    problems += reader.problems
    parent = root
    for position, segment in enumerate(segments[:-1]):
        parent = _descend(parent, segment, segments[:position], mark)
    _assign(parent, segments, node, mark)


def _require_stage(root: _Node, segments: list[str], mark: Mark) -> None:
    """A key of a stage needs that stage: a slip of the pen in its name must not make a new one."""
    stages = root.value.get("stages")
    known = stages.value if stages is not None and isinstance(stages.value, dict) else {}
    if segments[0] == "stages" and len(segments) > 2 and segments[1] not in known:
        name = segments[1]
        help = did_you_mean(name, known) or f"stages: {', '.join(known)}; 'stages.{name}={{...}}' adds one"
        raise _Failed(mark.problem(f"no stage '{name}'", help))


def _descend(node: _Node, segment: str, before: list[str], mark: Mark) -> _Node:
    """The child to write into; missing mappings are made here and judged by validation."""
    if isinstance(node.value, list):
        return _item(node, segment, before, mark)
    _open(node, segment, before, mark)
    if segment not in node.value:
        node.value[segment] = _Node({}, mark)
        node.keys[segment] = mark
    child: _Node = node.value[segment]
    return child


def _open(node: _Node, segment: str, before: list[str], mark: Mark) -> None:
    """Make a node a mapping: an empty one becomes `{}`, the component `ppo` becomes `{ppo: {}}`."""
    if isinstance(node.value, dict):
        return
    if node.value is None:
        node.value = {}
    elif node.value == segment:
        node.value, node.keys = {segment: _Node({}, mark)}, {segment: node.mark}
    else:
        where = ".".join(before)
        message = f"'{where}' is {node.value!r}, so it has no key '{segment}'"
        raise _Failed(mark.problem(message, f"{where}={{...}} replaces it"))


def _item(node: _Node, segment: str, before: list[str], mark: Mark) -> _Node:
    if not segment.isdecimal() or int(segment) >= len(node.value):
        where = ".".join(before)
        message = f"'{where}' is a list of {len(node.value)}, counted from 0; '{segment}' is not in it"
        raise _Failed(mark.problem(message))
    child: _Node = node.value[int(segment)]
    return child


def _assign(parent: _Node, segments: list[str], node: _Node, mark: Mark) -> None:
    *before, last = segments
    if isinstance(parent.value, list):
        _item(parent, last, before, mark)
        parent.value[int(last)] = node
        return
    _open(parent, last, before, mark)
    parent.value[last] = node
    parent.keys[last] = mark


def _delete(root: _Node, segments: list[str], mark: Mark) -> None:
    parent = root
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        if isinstance(parent.value, list):
            child = _item(parent, segment, segments[:position], mark)
            if last:
                del parent.value[int(segment)]
        elif isinstance(parent.value, dict) and segment in parent.value:
            child = parent.value[segment]
            if last:
                del parent.value[segment], parent.keys[segment]
        else:
            known = parent.value if isinstance(parent.value, dict) else ()
            message = f"there is no '{'.'.join(segments[: position + 1])}' to delete"
            raise _Failed(mark.problem(message, did_you_mean(segment, known)))
        parent = child


# --- the whole


def _flatten(node: _Node, key: Mark, keys: Keys, places: dict[Keys, tuple[Mark, Mark]]) -> Any:
    places[keys] = (key, node.mark)
    if isinstance(node.value, dict):
        return {name: _flatten(child, node.keys[name], (*keys, name), places) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_flatten(child, child.mark, (*keys, i), places) for i, child in enumerate(node.value)]
    return node.value


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read, compose and override; raises RecipeError with every problem of this level."""
    problems: list[Problem] = []
    try:
        root = _load_file(path, problems)
    except _Failed as failed:
        raise RecipeError([*problems, failed.problem]) from None
    for text in overrides:
        try:
            _override(root, text, problems)
        except _Failed as failed:
            problems.append(failed.problem)
    if problems:
        raise RecipeError(problems)
    places: dict[Keys, tuple[Mark, Mark]] = {}
    data = _flatten(root, Mark(str(path)), (), places)
    return Document(path, data, places)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else, such as '1e-5', which is text in YAML 1.1."""


for _name, (_pattern, _first) in _CORE.items():
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def dump(data: Any) -> str:
    """Plain data as YAML that `load_document` reads as the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def non_finite(data: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Paths of numbers that are infinite or not a number."""
    if isinstance(data, float) and not math.isfinite(data):
        yield keys
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield from non_finite(value, (*keys, key))
