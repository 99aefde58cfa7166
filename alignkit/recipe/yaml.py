"""YAML files with the place of every value: one file over the file that it `extends`, and overrides
over all of them.

YAML 1.2 core rules: only `true` and `false` are booleans, `1e-5` is a number, `017` is seventeen,
and `1_000`, `12:30` and dates are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import Problem, RecipeError, did_you_mean, path_text, refuse
from alignkit.host.plugins import reader_of
from alignkit.io.text import absolute, exists, expanded, is_file, redacted, resolved

Keys = tuple[str | int, ...]
# Keys -> the place of the key and of its value: a problem without a message. An override has a file
# and no line.
Places = dict[Keys, tuple[Problem, Problem]]

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # counted with aliases expanded: a small file can expand to billions of values
MAX_DEPTH = 64
MAX_SOURCE = 300  # characters; longer source lines are not shown
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


@dataclass
class Document:
    """A recipe as plain data, and where it was written.

    problems: of overrides, which were left out.
    """

    path: Path
    data: Any
    places: Places
    problems: list[Problem] = field(default_factory=list)

    def problem(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "") -> Problem:
        """Return a problem at a key or its value. If the path is not in the file, point at its
        nearest parent's key.
        """
        while keys not in self.places:
            keys, at_key = keys[:-1], True
        key, value = self.places[keys]
        return replace(key if at_key else value, message=message, help=help)

    def put(self, keys: Keys, place: Problem) -> None:
        """Make the place of a key that of the override which sets or deletes it."""
        self.places = {each: at for each, at in self.places.items() if each[: len(keys)] != keys}
        self.places[keys] = place, place


# --- one text


class _Loader(yaml.SafeLoader):
    """Composes nodes by YAML 1.2 core rules."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's way to drop the YAML 1.1 rules)
    # What is not UTF-8 was decoded as this character.
    NON_PRINTABLE = re.compile(f"\ufffd|{yaml.SafeLoader.NON_PRINTABLE.pattern}")  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else, such as '1e-5', which is text in
    YAML 1.1.
    """


# Tag -> the texts that have it.
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
}
for _name, _pattern in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern})\\Z"), None)


def dump(data: Any, flow: bool = False) -> str:
    """Return plain data as YAML that is read as the same data. flow: on one line."""
    layout: dict[str, Any] = {"default_flow_style": True, "width": MAX_BYTES} if flow else {}
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)
    return text


_HIDES = "# *** stands for a key at: "


def without_keys(data: Any) -> str:
    """Plain data as YAML without keys of services. Its first line names the places of those that
    were there, so that `load_document` refuses it until they are given.
    """
    hidden: list[str] = []

    def note(text: str, keys: Keys) -> str:
        name = ".".join(str(key) for key in keys if not isinstance(key, int))
        if redacted(text, name) != text:
            hidden.append(path_text(keys))
        return text

    rewritten(data, note)
    text = dump(redacted(data))
    return f"{_HIDES}{' '.join(hidden)}\n{text}" if hidden else text


# Tag -> a scalar's value. PyYAML's own constructors follow YAML 1.1, where 017 is octal.
_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
    "str": str,
}


class _Reader:
    """Turns one YAML text into plain data, and collects places and problems. file: its path, or its
    name in errors.
    """

    def __init__(self, text: str, file: str, problems: list[Problem]):
        self.text, self.file, self.problems = text, file, problems
        self.lines = text.splitlines() or [""]
        self.places: Places = {}
        self.count = 0

    def read(self) -> Any:
        """Return the data. Raises RecipeError with all problems if the text cannot be read at
        all.
        """
        try:
            root = _Loader(self.text).get_single_node()
        except yaml.reader.ReaderError as error:
            raise self._invalid(error.position, error.reason) from None
        except yaml.MarkedYAMLError as error:
            raise self._invalid(getattr(error.problem_mark, "index", 0), error.problem) from None
        except RecursionError:
            raise self.failed(
                Problem("", self.file), f"nested deeper than {MAX_DEPTH} levels"
            ) from None
        start = Problem("", self.file)
        self.places[()] = start, self._of(root) if root else start
        return self._value(root, ()) if root else None

    def failed(self, place: Problem, message: str, help: str = "") -> RecipeError:
        """The error that says this last."""
        return RecipeError([*self.problems, replace(place, message=message, help=help)])

    def _place(self, line: int, column: int, length: int) -> Problem:
        """A place, counted from 0."""
        source = self.lines[line].rstrip() if column + length <= MAX_SOURCE else ""
        return Problem("", self.file, line + 1, column + 1, length, source[:MAX_SOURCE])

    def _invalid(self, index: int, reason: str | None) -> RecipeError:
        """What YAML does not allow at a character; behind the last text if it is beyond."""
        before = self.text[: min(index, len(self.text.rstrip()))]
        place = self._place(before.count("\n"), len(before) - before.rfind("\n") - 1, 1)
        return self.failed(place, f"not valid YAML: {reason}")

    def _of(self, node: yaml.Node) -> Problem:
        start, end = node.start_mark, node.end_mark
        stop = end.column if end.line == start.line else len(self.lines[start.line].rstrip())
        return self._place(start.line, start.column, max(1, stop - start.column))

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        self.count += 1
        kind, place = node.tag.removeprefix(TAG), self._of(node)
        if self.count > MAX_NODES or len(keys) >= MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels, or more than {MAX_NODES} values"
            raise self.failed(place, f"{message} (an alias inside its own anchor?)")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [
                self._item(child, self._of(child), (*keys, index))
                for index, child in enumerate(node.value)
            ]
        message = (
            f"the tag '{node.tag.replace(TAG, '!!', 1)}' is not allowed: recipes are plain data"
        )
        if isinstance(node, yaml.ScalarNode) and kind in _VALUES:
            try:
                # Fails for an escape such as "\ud800", which is not a character
                node.value.encode()
                return _VALUES[kind](node.value)
            except ValueError:
                message = f"cannot be read as '!!{kind}'"
        self.problems.append(replace(place, message=message))
        return None

    def _item(self, node: yaml.Node, key: Problem, keys: Keys) -> Any:
        self.places[keys] = key, self._of(node)
        return self._value(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            place, key = self._of(key_node), self._value(key_node, keys)
            if not isinstance(key, str) or (key == "<<" and key_node.style is None):
                message = "a key must be text, and merge keys are not supported"
                self.problems.append(
                    replace(place, message=message, help="files are merged with 'extends:'")
                )
            elif key in result:
                self.problems.append(replace(place, message=f"duplicate key '{key}'"))
            else:
                result[key] = self._item(child, place, (*keys, key))
        return result


# --- files


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe's files, merge them and apply overrides. Raises RecipeError with every problem
    of the files.
    """
    problems: list[Problem] = []
    data, places = _file(path, path.parent, problems)
    document = _document(Document(path, data, places), problems, overrides)
    head = _text(path).partition("\n")[0]
    hidden = head.removeprefix(_HIDES).split() if head.startswith(_HIDES) else ()
    for keys, place in places.items():
        name = path_text(keys)
        if name in hidden and document.places.get(keys) == place:
            message = f"'{name}' was a key, which no run stores"
            help = f"add {name}=... to the command, or run the recipe that has it"
            document.problems.append(document.problem(keys, message, help=help))
    return document


def parse_document(text: str, path: Path, overrides: Sequence[str] = ()) -> Document:
    """The same for a text that is in no file. path: names it in errors; relative paths start at its
    folder.
    """
    reader = _Reader(text, str(path), [])
    return _document(Document(path, reader.read(), reader.places), reader.problems, overrides)


def plain_data(text: str, name: str) -> Any:
    """YAML as plain data. name: of the text, in errors. Raises RecipeError if it cannot be read."""
    return parse_document(text, Path(name)).data


def _document(document: Document, problems: list[Problem], overrides: Sequence[str]) -> Document:
    for text in overrides:
        try:
            _override(document, text)
        except RecipeError as error:
            override = f"override '{text}'"
            document.problems += [
                Problem(each.message, override, help=each.help) for each in error.problems
            ]
    if problems:
        raise RecipeError([*problems, *document.problems])
    return document


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            [Problem(f"cannot read the file: {str(error.strerror).lower()}", str(path))]
        ) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem("the file is larger than 1 MiB, so it is no recipe", str(path))])
    return raw.decode("utf-8-sig", errors="replace")


def _file(
    path: Path, folder: Path, problems: list[Problem], chain: tuple[Path, ...] = ()
) -> tuple[Any, Places]:
    """The data of a file, merged over those of the file that it extends. chain: the files that led
    to it.
    """
    reader = _Reader(_text(path), str(path), problems)
    data = reader.read()
    extended = data.pop("extends", None) if isinstance(data, dict) else None
    data = _with_absolute_paths(data, path.parent, folder)
    if extended is None:
        return data, reader.places
    place = reader.places[("extends",)][1]
    try:
        target = find_recipe(str(extended), path.parent)
    except RecipeError as error:
        raise reader.failed(place, error.problems[0].message, error.problems[0].help) from None
    chain = (*chain, resolved(path))
    if resolved(target) in chain:
        names = " -> ".join(item.name for item in (*chain, target))
        raise reader.failed(place, f"files extend each other in a cycle: {names}")
    extended, places = _file(target, folder, problems, chain)
    return _merged(extended, data), {**places, **reader.places}


def children(value: Any) -> Mapping[Any, Any]:
    """What is in a mapping by key, or in a list by index; anything else is empty."""
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return mapping(value)


def mapping(value: Any) -> Mapping[Any, Any]:
    """A mapping; anything else is an empty one."""
    if isinstance(value, Mapping):
        return value
    return {}


def rewritten(value: Any, change: Callable[[str, Keys], Any], keys: Keys = ()) -> Any:
    """Plain data below some keys with every text changed. One that becomes a list joins the list
    that it is in.
    """
    if isinstance(value, dict):
        return {key: rewritten(item, change, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list):
        items: list[Any] = []
        for index, item in enumerate(value):
            new = rewritten(item, change, (*keys, index))
            items += new if isinstance(item, str) and isinstance(new, list) else [new]
        return items
    return change(value, keys) if isinstance(value, str) else value


def _with_absolute_paths(data: Any, start: Path, folder: Path) -> Any:
    """The data with absolute paths if they are written elsewhere: those of a recipe start at the
    recipe's folder.

    A text is a path if it is no plain word, and names a file or a folder, or a file that runs
    write. One that is only in the recipe's folder is missing.
    """

    def change(text: str, keys: Keys) -> str:
        name, separator, rest = text.rpartition("://")
        path = absolute(start / expanded(rest))
        is_path = exists(path) or exists(folder / rest) or getattr(reader_of(path), "grows", False)
        return f"{name}{separator}{path}" if is_path and re.search(r"[./~]", rest) else text

    return data if resolved(start) == resolved(folder) else rewritten(data, change)


def _merged(under: Any, over: Any, key: str = "") -> Any:
    """`over` on top of `under`: mappings are merged, anything else is replaced."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    if key in _COMPONENTS and not under.keys() & over.keys():
        return over
    merged = {
        name: _merged(under[name], value, name) for name, value in over.items() if name in under
    }
    return {**under, **over, **merged}


# --- overrides: `a.b=c` sets a value, `~a.b` deletes one


def _override(document: Document, text: str) -> None:
    """Apply an override. Raises RecipeError if that is impossible."""
    path, equals, value = text.partition("=")
    names = path.strip().removeprefix("~").split(".")
    if not all(names) or path.startswith("~") == bool(equals) or names[0] == "extends":
        message = (
            "an override must be key.path=value, or ~key.path to delete a key; 'extends' cannot "
            "be overridden"
        )
        refuse(message)
    reader = _Reader(value, "", [])
    new = reader.read()
    if isinstance(new, str) and " #" in value and value.lstrip()[0] not in "\"'":
        new = value.strip()  # nobody comments on an override, but a path may have a #
    new = _with_absolute_paths(new, Path.cwd(), document.path.parent)
    if reader.problems:
        raise RecipeError(reader.problems)
    place = Problem("", f"override '{text}'")
    inside, keys = document.data, Keys()
    for depth, name in enumerate(names, 1):
        there = children(inside)
        key = int(name) if isinstance(inside, list) and name.isdecimal() else name
        keys = (*keys, key)
        misspelled = depth == 2 < len(names) and names[0] == "stages"  # would be a new stage
        if key not in there:
            if not equals or misspelled or not isinstance(inside, dict):
                known = list(map(str, there))
                help = did_you_mean(name, known, "keys there")
                refuse(f"no such key: '{'.'.join(names[:depth])}'", help)
            document.put(keys, place)
        if depth < len(names):
            if there.get(key) in (None, names[depth]):  # `ppo` becomes `{ppo: {}}`
                inside[key] = {}
            inside = inside[key]
    document.put(keys, place)
    if equals:
        inside[key] = new
    else:
        del inside[key]


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
    """The shipped recipe that is meant by `quickstart` or `recipes/quickstart.yaml`; None if there
    is none.
    """
    return shipped().get(text.removeprefix("recipes/").removesuffix(".yaml"))


def find_recipe(name: str | Path, folder: Path = Path()) -> Path:
    """The file of a recipe, given as a path from a folder or by the name of a shipped recipe.
    Raises RecipeError.
    """
    path = folder / name
    if is_file(path):
        return path
    if found := shipped_recipe(str(name)):
        return found
    near = did_you_mean(path.stem, sorted(map(str, path.parent.glob("*.y*ml"))))
    ways = near or did_you_mean(path.stem, shipped(), "shipped recipes")
    refuse(f"no such recipe: {name}", ways)
