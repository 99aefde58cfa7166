"""What varies between the runs of one recipe: each `--each` is an axis, axes cross, and a cell has a
value of each.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import did_you_mean, refuse
from alignkit.io.digest import digest
from alignkit.recipe.yaml import plain_data

RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
EXAMPLE = "--each seed=3..7, or --each stages.align.algorithm=ppo,grpo"
MOST = 10_000  # cells
LONGEST = 40  # characters of a value in an address
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Axis:
    """An option `--each`. key: of the recipe, or what a file of variants is called. values: the
    overrides of each value, by its name in addresses.
    """

    key: str
    values: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Cell:
    """A run of the recipe. place: among all. values: by the key of the axis."""

    place: int
    values: Mapping[str, str]
    overrides: Sequence[str]
    address: str


def cells_of(words: Sequence[str]) -> list[Cell]:
    """The cells of options `--each`: the last one varies fastest. Raises RecipeError."""
    axes = list(map(_axis, words))
    found, names, short = list[Cell](), dict[str, str](), Counter[str]()
    for axis in axes:
        if axis.key in names:
            text = f"--each {axis.key}: there are two axes of this key"
            refuse(text, "write their values into one")
        names[axis.key] = axis.key.rpartition(".")[2]
        short[names[axis.key]] += 1
    for chosen in itertools.product(*(axis.values.items() for axis in axes)):
        values, overrides, parts = dict[str, str](), list[str](), list[str]()
        for axis, (value, own) in zip(axes, chosen, strict=True):
            values[axis.key] = value
            overrides += own
            name = names[axis.key]
            parts.append(f"{name if short[name] == 1 else axis.key}={value}")
        found.append(Cell(len(found), values, overrides, ",".join(parts)))
        if len(found) > MOST:
            refuse(f"--each makes more than {MOST:,} cells", "give it fewer values")
    return found


def _axis(word: str) -> Axis:
    key, equals, text = word.partition("=")
    if not equals or not key or not text.strip():
        refuse(f"--each {word}: expected KEY=VALUE,VALUE", f"for example: {EXAMPLE}")
    values = dict[str, Sequence[str]]()
    for value, overrides in _values(key, text.strip()):
        if value in values:
            refuse(f"--each {key}: the value {value} is there twice", "leave one of them out")
        values[value] = overrides
        if len(values) > MOST:
            refuse(f"--each makes more than {MOST:,} cells", "give it fewer values")
    return Axis(key, values)


def _values(key: str, text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """The values of an axis by name, each with its overrides."""
    if Path(text).suffix in (".yaml", ".yml"):
        for name, overrides in _variants(key, Path(text)).items():
            yield _name(name), overrides
        return
    try:
        parts = list(_parts(text))
    except yaml.YAMLError:
        refuse(f"--each {key}={text}: expected values of YAML", f"for example: {EXAMPLE}")
    for part in parts:
        bounds = RANGE.fullmatch(part)
        if not bounds:
            yield _name(part), [f"{key}={part}"]
            continue
        low, high = map(int, bounds.groups())
        if low > high:
            refuse(f"--each {key}={part}: the range is empty", f"write {key}={high}..{low}")
        for number in range(low, high + 1):
            yield str(number), [f"{key}={number}"]


def _variants(key: str, file: Path) -> dict[str, Sequence[str]]:
    """The overrides of each variant in a file: of a mapping, a key each, or a list of texts."""
    if not file.is_file():
        others = [one.name for one in file.parent.glob("*.y*ml")]
        refuse(f"--each {key}: no such file: {file}", did_you_mean(file.name, others))
    try:
        found = plain_data(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        refuse(f"{file}: it is not UTF-8", "save it as UTF-8")
    variants = dict[str, Sequence[str]]()
    for name, own in found.items() if isinstance(found, Mapping) else ():
        if isinstance(own, Mapping):
            own = [f"{one}={json.dumps(value)}" for one, value in own.items()]
        if not isinstance(own, list) or not all(isinstance(one, str) for one in own):
            refuse(f"{file}: {name}: expected overrides", "such as {stages.align.epochs: 2}")
        variants[str(name)] = own
    if not variants:
        refuse(f"{file}: expected variants by name", "such as `slow: {stages.align.epochs: 2}`")
    return variants


def _parts(text: str) -> Iterator[str]:
    """A text cut at its commas, but for those in brackets and quotes of YAML. Raises YAMLError."""
    line = f"[{text}]"
    found: Any = yaml.compose(line, yaml.BaseLoader)
    for node in found.value:
        yield line[node.start_mark.index : node.end_mark.index]


def _name(value: str) -> str:
    """A value as part of the name of a folder."""
    name = _UNSAFE.sub("-", value).strip("-")
    if name == value and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 7]}-{digest(value)[:6]}"
