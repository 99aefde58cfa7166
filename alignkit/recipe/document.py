"""Composes a recipe from its files and overrides, as plain data plus the place of every key and value.

A file is merged over the file that it `extends`; overrides (`a.b=c`, `~a.b`) come last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.lookup import is_file, resolved
from alignkit.recipe.overrides import apply_override
from alignkit.recipe.shipped import shipped, shipped_recipe
from alignkit.recipe.yaml_nodes import MAX_SOURCE, Failed, Mark, Node, Reader
from alignkit.recipe.yaml_nodes import dump as dump

Keys = tuple[str | int, ...]

MAX_BYTES = 1 << 20
# A component is written `{PLUGIN: {options}}`. Options of different plugins must not be merged.
_COMPONENTS = frozenset(
    {
        *("algorithm", "step", "reward", "rewards", "judge", "environment", "engine"),
        *("data", "prompts", "validation"),
    }
)


@dataclass
class Document:
    """Plain data. places: for every path in it, the marks of its key and of its value."""

    path: Path
    data: Any
    places: dict[Keys, tuple[Mark, Mark]]

    def problem(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "") -> Problem:
        """Return a problem at a key or its value. If the path is not in the file, point at its nearest parent's key."""
        present = keys
        while present not in self.places:
            present = present[:-1]
        key, value = self.places[present]
        return (key if at_key or present != keys else value).problem(message, help)

    def naming(self, keys: Keys, path: Path) -> Keys:
        """The first place at or below `keys` whose text names a path; `keys` if there is none."""
        for place in self.places:
            if place[: len(keys)] == keys and isinstance(text := reduce(getitem, place, self.data), str):
                with suppress(ValueError, OSError):  # not a path, or one that is too long
                    if (self.folder(place) / text).resolve() == path.resolve():
                        return place
        return keys

    def overridden(self, keys: Keys) -> bool:
        """Whether an override wrote this value."""
        return keys in self.places and not self.places[keys][1].line

    def folder(self, keys: Keys) -> Path:
        """Return the folder that a relative path at `keys` starts from: its file's, or an override's shell's."""
        if self.overridden(keys):
            return Path.cwd()
        return Path(self.places[keys][1].file).parent if keys in self.places else self.path.parent


def load_document(path: Path, overrides: Sequence[str] = (), wrong: list[Problem] | None = None) -> Document:
    """Read a recipe's files, merge them and apply overrides. Raises RecipeError with every problem found so far.

    wrong: receives the problems of overrides, which are then left out; None: they are raised, too.
    """
    problems: list[Problem] = []
    try:
        root = _load_file(path, problems)
    except Failed as failed:
        raise RecipeError([*problems, failed.problem]) from None
    return _document(root, path, overrides, problems, wrong)


def parse_document(text: str, path: Path, overrides: Sequence[str], wrong: list[Problem]) -> Document:
    """The same for a text that is in no file. path: names it in errors; relative paths start at its folder."""
    reader = Reader(text, str(path))
    return _document(reader.read(), path, overrides, reader.problems, wrong)


def plain_data(text: str, name: str) -> Any:
    """YAML as plain data. name: of the text, in errors. Raises RecipeError if it cannot be read."""
    return _plain(Reader(text, name)).data


def plain_file(path: Path, what: str) -> Document:
    """A YAML file that is no recipe. what: it is, in errors. Raises RecipeError if it cannot be read."""
    try:
        text = _read_text(path, what)
    except Failed as failed:
        raise RecipeError([failed.problem]) from None
    return _plain(Reader(text, str(path)))


def _plain(reader: Reader) -> Document:
    try:
        root = reader.read()
    except Failed as failed:
        raise RecipeError([failed.problem]) from None
    if reader.problems:
        raise RecipeError(reader.problems)
    places: dict[Keys, tuple[Mark, Mark]] = {}
    return Document(Path(reader.file), _flatten(root, Mark(reader.file), (), places), places)


def _document(
    root: Node, path: Path, overrides: Sequence[str], problems: list[Problem], wrong: list[Problem] | None
) -> Document:
    of_overrides = problems if wrong is None else wrong
    for text in overrides:
        try:
            apply_override(root, text, of_overrides)
        except Failed as failed:
            of_overrides.append(failed.problem)
    if problems:
        problems += wrong or []
        raise RecipeError(problems)
    places: dict[Keys, tuple[Mark, Mark]] = {}
    data = _flatten(root, Mark(str(path)), (), places)
    return Document(path, data, places)


def non_finite(data: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the paths of numbers that are infinite or NaN."""
    if isinstance(data, float) and not math.isfinite(data):
        yield keys
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield from non_finite(value, (*keys, key))


def _read_text(path: Path, what: str = "recipe") -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error).lower()
        raise Failed(Problem(f"cannot read the {what}: {reason}", str(path))) from None
    if len(raw) > MAX_BYTES:
        raise Failed(Problem(f"the file is larger than 1 MiB, so it cannot be a {what}", str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        lines = before.split("\n")
        message = f"not valid UTF-8: byte 0x{raw[error.start]:02x}"
        shown = raw.split(b"\n")[len(lines) - 1].decode("utf-8", "replace").rstrip()[:MAX_SOURCE]
        raise Failed(Problem(message, str(path), len(lines), len(lines[-1]) + 1, 1, shown)) from None


def _load_file(path: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> Node:
    """Return the nodes of a file, merged over those of the file that it extends."""
    reader = Reader(_read_text(path), str(path))
    root = reader.read()
    problems += reader.problems
    if root.value is None and not reader.problems:
        raise Failed(Mark(str(path)).problem("the file is empty"))
    if not isinstance(root.value, dict):
        raise Failed(root.mark.problem("a recipe must be a mapping with 'model:' and 'stages:'"))
    base = root.value.pop("extends", None)
    root.keys.pop("extends", None)
    if base is None or base.value is None:
        return root
    if not isinstance(base.value, str):
        raise Failed(base.mark.problem("'extends' must be the name of one file"))
    return _merge(_load_base(path, base, problems, (*chain, path.resolve())), root)


def _load_base(path: Path, base: Node, problems: list[Problem], chain: tuple[Path, ...]) -> Node:
    """Return the nodes of the file that another file extends. chain: the files that led to it."""
    target = path.parent / base.value
    if not is_file(target):
        target = shipped_recipe(base.value) or target
    if resolved(target) in chain:
        names = " -> ".join(item.name for item in (*chain, target))
        raise Failed(base.mark.problem(f"files extend each other in a cycle: {names}"))
    if not is_file(target):
        help = (
            did_you_mean(base.value, shipped())
            or "write a path from the folder of this file, or the name of a shipped recipe"
        )
        raise Failed(base.mark.problem(f"no such file: {target}", help))
    return _load_file(target, problems, chain)


def _merge(base: Node, over: Node, key: str = "") -> Node:
    """Return `over` on top of `base`: mappings are merged, anything else is replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if key in _COMPONENTS and not base.value.keys() & over.value.keys():
        return over
    result = Node(dict(base.value), over.mark, dict(base.keys))
    for name, node in over.value.items():
        result.value[name] = _merge(base.value[name], node, name) if name in base.value else node
        result.keys[name] = over.keys[name]
    return result


def _flatten(node: Node, key: Mark, keys: Keys, places: dict[Keys, tuple[Mark, Mark]]) -> Any:
    """Return a node as plain data, and record the places of its values."""
    places[keys] = (key, node.mark)
    if isinstance(node.value, dict):
        return {name: _flatten(child, node.keys[name], (*keys, name), places) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_flatten(child, child.mark, (*keys, i), places) for i, child in enumerate(node.value)]
    return node.value
