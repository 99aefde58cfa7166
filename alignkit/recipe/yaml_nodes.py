"""Reads YAML text into nodes that record their place in the file.

YAML 1.2 core rules: only `true` and `false` are booleans, `1e-5` is a number, `017` is seventeen, and `1_000`, `12:30`
and dates are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignkit.errors import Problem

MAX_NODES = 20_000  # counted with aliases expanded: a small file can expand to billions of values
MAX_DEPTH = 64
MAX_SOURCE = 300  # characters; longer source lines are not shown
ESCAPES = "in double quotes a backslash begins an escape, such as \\n for a line break: write slashes, or single quotes"
TAG = "tag:yaml.org,2002:"
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


class Failed(Exception):
    """A problem that prevents reading anything else."""

    def __init__(self, problem: Problem):
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """Composes nodes by YAML 1.2 core rules."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's way to drop the YAML 1.1 rules)


_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
# Tag -> the texts that have it, and their first characters.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (_INT.pattern, list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else, such as '1e-5', which is text in YAML 1.1."""


for _name, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def dump(data: Any) -> str:
    """Return plain data as YAML that is read as the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _scalar(kind: str, text: str) -> Any:
    """Return a scalar's value. PyYAML's own constructors follow YAML 1.1, where 017 is octal."""
    if kind != "str" and not re.fullmatch(_CORE[kind][0], text):
        raise ValueError(text)
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


class Reader:
    """Turns one YAML text into nodes and collects every problem. file: its path, or the name of an override."""

    def __init__(self, text: str, file: str, in_file: bool = True):
        self.text, self.file, self.in_file = text, file, in_file
        self.lines = _LINE_BREAK.split(text)
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
        if root is None:
            return Node(None, self._mark(0, 0))
        return self._convert(root, 1)

    # places

    def _mark(self, line: int, column: int, length: int = 1) -> Mark:
        """Return the mark of a place, counted from 0. For an override, return a mark without line and column."""
        if not self.in_file:
            return Mark(self.file)
        source = self.lines[line] if line < len(self.lines) else ""
        shown = source if column + length <= MAX_SOURCE else ""
        return Mark(self.file, line + 1, column + 1, length, shown[:MAX_SOURCE].rstrip())

    def _of(self, node: yaml.Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column if end.line == start.line else len(line.split(" #")[0].rstrip())
        return self._mark(start.line, start.column, max(1, stop - start.column))

    def _syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        """Return a syntax error with its place and help."""
        mark = error.problem_mark or error.context_mark
        text = error.problem or "syntax error"
        if error.context:
            text += f" ({error.context})"
        help = ""
        if "mapping values are not allowed" in text:
            help = "check the indentation; text that contains ': ' needs quotes"
        elif "'\\t'" in text:
            help = "indent with spaces, not tabs"
        elif "escape character" in text or "escape sequence" in text:
            help = ESCAPES
        if mark is None:
            return Mark(self.file).problem(f"not valid YAML: {text}", help)
        line, column = mark.line, mark.column
        if line >= len(self.lines) or not self.lines[line].strip():  # at the end of the file: show the last text
            line = max((i for i, text in enumerate(self.lines[: line + 1]) if text.strip()), default=0)
            column = len(self.lines[line].rstrip())
        return self._mark(line, column).problem(f"not valid YAML: {text}", help)

    # values

    def _convert(self, node: yaml.Node, depth: int) -> Node:
        mark = self._of(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise Failed(mark.problem(f"expands to more than {MAX_NODES} values (every use of an alias counts)"))
        if depth > MAX_DEPTH:
            raise Failed(mark.problem(f"nested deeper than {MAX_DEPTH} levels (an alias inside its own anchor?)"))
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self._mapping(node, mark, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return Node([self._convert(child, depth + 1) for child in node.value], mark)
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", *_CORE):
            return Node(self._value(node, kind, mark), mark)
        self.problems.append(mark.problem(f"the tag '{_short(node.tag)}' is not allowed: recipes are plain data"))
        return Node(None, mark)

    def _value(self, node: yaml.ScalarNode, kind: str, mark: Mark) -> Any:
        try:
            value = _scalar(kind, node.value)
            if isinstance(value, str):
                value.encode()  # fails for an escape such as "\ud800", which is not a character
                if "\0" in value:
                    self.problems.append(mark.problem("contains a NUL character"))
                    return value.replace("\0", "")
        except UnicodeEncodeError:
            self.problems.append(mark.problem("not valid text: half of a surrogate pair"))
            return ""
        except ValueError:
            self.problems.append(mark.problem(f"cannot be read as '{_short(TAG + kind)}'"))
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, mark: Mark, depth: int) -> Node:
        result = Node({}, mark)
        for key_node, value_node in node.value:
            key_mark = self._of(key_node)
            value = self._convert(value_node, depth + 1)
            key = self._key(key_node, key_mark)
            if key is None:
                continue
            if key in result.value:
                first = result.keys[key]
                where = f"first on line {first.line}" if first.line else "in the override"
                self.problems.append(key_mark.problem(f"duplicate key '{key}' ({where})"))
                continue
            result.value[key] = value
            result.keys[key] = key_mark
        return result

    def _key(self, node: yaml.Node, mark: Mark) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.problems.append(mark.problem("a key must be text, not a list or mapping"))
        elif node.tag != TAG + "str":
            self.problems.append(mark.problem(f"a key must be text: write '{node.value}' in quotes"))
        elif node.value == "<<" and node.style is None:
            self.problems.append(mark.problem("merge keys ('<<') are not supported", "merge files with 'extends:'"))
        else:
            return str(self._value(node, "str", mark))
        return None


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag
