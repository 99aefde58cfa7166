"""The names that recipes and plugins may use: a change to any of them shows up in a diff of one
text file.

After an intended change, write the snapshot again with `python tests/test_public_names.py`. Those
of earlier minor versions stay.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import alignkit
from alignkit.contract import commands, hookspecs
from alignkit.host.plugins import load_plugins
from alignkit.host.registry import KINDS

MODULES = ("", "functional", "evaluation.statistics", "testing")  # whose `__all__` is public
LISTED = re.compile(r"^<!-- generated: api (?!index)(.+?) -->$", re.MULTILINE)
# What examples that go further than a plugin must use, and nobody promises.
BEYOND = {"data.group.group_to_json", "data.group.group_from_json"}
# Packages that were a part of alignkit, and still use what is not promised.
FORMER = {
    "alignkit-decision",
    "alignkit-combinations",
    "alignkit-migrate",
    "alignkit-ray",
    "alignkit-self-instruct",
}
ROOT = Path(__file__).parent.parent
PAGES = {
    page.stem: names
    for page in sorted((ROOT / "docs" / "plugins" / "api").glob("*.md"))
    if (names := " ".join(LISTED.findall(page.read_text(encoding="utf-8"))).split())
}
MINOR = alignkit.__version__.rpartition(".")[0]
SNAPSHOT = Path(__file__).parent / "snapshots" / f"public_names-{MINOR}.txt"


def thing_of(name: str) -> Any:
    """What a public name of a page is: `Group`, `functional.kl_k1`, or a hook."""
    module, _, plain = name.rpartition(".")
    places = (
        [importlib.import_module(f"alignkit.{module}")]
        if module
        else [alignkit, hookspecs, commands]
    )
    return next(getattr(place, plain) for place in places if hasattr(place, plain))


def _signature(thing: Any) -> str:
    """Of our own functions: those of pydantic and pluggy are theirs to change."""
    if not inspect.isfunction(thing) or not thing.__module__.startswith("alignkit"):
        return ""
    return f"({', '.join(inspect.signature(thing).parameters)})"


def _members(cls: type) -> list[str]:
    """Methods with their parameters, and attributes, without those that every class of the library
    has.
    """
    if issubclass(cls, Enum):
        return sorted(cls.__members__)
    found = (
        {field.name for field in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else set()
    )
    for name in vars(cls):
        if not name.startswith("_") and not name.startswith("model_"):
            member = getattr(cls, name)
            found.add(name + (_signature(member) if inspect.isfunction(member) else ""))
    return sorted(found)


def _public(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield f"{name}: {' '.join(_members(thing))}".rstrip()
    else:
        yield name + _signature(thing)


def _lines() -> Iterator[str]:
    for page, names in PAGES.items():
        yield f"# {page}"
        for name in names:
            yield from _public(name, thing_of(name))
        yield ""
    yield "# what recipes can name"
    registry = load_plugins()
    for kind in KINDS:
        for registration in registry.registrations(kind):
            if registration.distribution != "alignkit":
                continue
            # Whose options are the arguments of other libraries
            theirs = kind in ("optimizer", "schedule")
            options = None if theirs else getattr(registration.implementation, "Options", None)
            keys = " ".join(options.model_fields) if options is not None else ""
            yield f"{kind} {registration.name}: {keys}".rstrip(": ")


def test_the_pages_list_every_public_name_once() -> None:
    """Of hooks, those that they leave out are for what comes with alignkit."""
    listed = Counter(name for names in PAGES.values() for name in names)
    hooks = {
        "register_commands",
        *(name for name in listed if hasattr(thing_of(name), "alignkit_spec")),
    }
    assert {name: count for name, count in listed.items() if count > 1} == {}
    promised = {
        f"{module}.{name}".removeprefix(".")
        for module in MODULES
        for name in importlib.import_module(f"alignkit.{module}".removesuffix(".")).__all__
    }
    assert listed.keys() - hooks == promised - {"evaluation", "functional"}
    assert len(listed) <= 120


def test_examples_need_no_other_names() -> None:
    """The packages and the pages for authors: what they import from alignkit, and use as `ak.NAME`
    or `F.NAME`.
    """
    listed = {name for names in PAGES.values() for name in names}
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "examples").rglob("*.py")]
    templates = (ROOT / "plugins" / "alignkit_plugins" / "authors" / "templates").glob("*.py")
    own = [
        page
        for page in [*pages, *templates]
        if not page.name.startswith("test_") and not FORMER & {*page.parts}
    ]
    used = {name for page in own for name in _used(page)}
    modules = {"functional", "hookspecs", "testing", "evaluation", "__version__"}
    assert used - listed - modules == BEYOND


IMPORTS = re.compile(r"^ *from alignkit(?:\.([\w.]+))? import (?:\(([^)]*)\)|(.*))", re.MULTILINE)
MEMBERS = re.compile(r"\b(ak|F)\.(\w+)")


def _used(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        text = "\n".join(block for block in blocks if ">>>" not in block)
    for module, several, one in IMPORTS.findall(text):
        for name in re.findall(r"\w+(?: as \w+)?", several or one.partition("#")[0]):
            yield f"{module}.{name.partition(' ')[0]}".lstrip(".")
    for prefix, name in MEMBERS.findall(text):
        yield f"functional.{name}" if prefix == "F" else name


def test_public_names_are_those_of_the_snapshot() -> None:
    assert "\n".join(_lines()) + "\n" == SNAPSHOT.read_text(encoding="utf-8"), (
        f"see {__file__} to update it"
    )


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(_lines()) + "\n", encoding="utf-8")
