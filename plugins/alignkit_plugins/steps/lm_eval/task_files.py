"""Finds Python code that the YAML files of tasks name, without running any of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

# The harness's tag for a function of a Python file next to the YAML, and YAML's own for Python objects.
CODE = ("!function", "tag:yaml.org,2002:python/")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the harness's parser, so that both see the same


def code_in(folder: Path) -> list[str]:
    """The places, as `FILE:LINE`, at which tasks in a folder, or files that they include, name Python code."""
    seen: set[Path] = set()
    return [place for path in sorted(folder.rglob("*.yaml")) for place in _places(path.resolve(), seen)]


def _places(path: Path, seen: set[Path]) -> Iterator[str]:
    if path in seen or not path.is_file():
        return
    seen.add(path)
    try:
        root = yaml.compose(path.read_bytes(), Loader=_LOADER)  # bytes, because YAML may be UTF-16
    except yaml.YAMLError:
        return  # the harness cannot read it either
    nodes = list(_nodes(root, set()))
    for node in nodes:
        if str(node.tag).startswith(CODE):
            yield f"{path}:{node.start_mark.line + 1}"
    for included in _included(nodes):
        yield from _places((path.parent / included).resolve(), seen)


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A node and all below it, each once: an alias may even point to a node around it."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key, seen)
            yield from _nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item, seen)


def _included(nodes: Sequence[Any]) -> Iterator[str]:
    """The files that a task takes its other keys from. A key at any depth counts: `<<` moves keys up."""
    for node in nodes:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == "include":
                items = value.value if isinstance(value, yaml.SequenceNode) else [value]
                yield from (str(item.value) for item in items)
