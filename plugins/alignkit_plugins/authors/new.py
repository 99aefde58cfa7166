"""`alignkit plugins new`: a package with one plugin, made from the documented example of its kind.

`templates/KIND.py` is that example: `docs/generate.py` shows it, and here only its name changes.
"""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
from collections.abc import Container
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import yaml
from packaging.version import Version

from alignkit import __version__
from alignkit.commands import GROUP as COMMANDS
from alignkit.commands import refuse
from alignkit.errors import did_you_mean
from alignkit.io.atomic import write_text
from alignkit.plugins import GROUP
from alignkit.registry import KINDS, Registry

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 24  # letters of a name: lines of the templates have room for as many


def kinds() -> tuple[str, ...]:
    """The kinds of plugins that can be made."""
    return tuple(kind for kind in _contents() if kind != "online")


def example(kind: str) -> str:
    """The module of a kind's example."""
    return _template(f"{kind}.py")


def write_package(name: str, kind: str, registry: Registry, commands: Container[str]) -> list[Path]:
    """Write the package `alignkit-NAME` into a folder of this name; returns its files.

    commands: names that are taken by commands. Raises RecipeError for a bad or a taken name, or an
    existing folder.
    """
    if kind not in kinds():
        refuse(f"no kind '{kind}'", did_you_mean(kind, kinds()) or f"kinds: {', '.join(kinds())}")
    good, command = _nearest(name, kind), name.replace("_", "-")
    if name != good:
        rule = (
            f"lower-case letters, digits and single '_', at most {LONGEST}, and no word that the "
            "module uses"
        )
        refuse(f"a plugin cannot be called '{name}': a name has {rule}", f"write {good}")
    taken = [f"{known} '{name}'" for known in KINDS if registry.has(known, name)]
    taken += [f"command '{command}'"] if kind == "command" and command in commands else []
    taken += (
        [f"module alignkit_{name}"]
        if importlib.util.find_spec(f"alignkit_{name}") is not None
        else []
    )
    if taken:
        article = "an" if taken[0][0] in "aeiou" else "a"
        refuse(
            f"there is {article} {taken[0]} already",
            f"take another name, such as {_nearest(f'my_{name}', kind)}",
        )
    folder = Path(f"alignkit-{command}")
    if folder.exists():
        refuse(
            f"{folder} exists already",
            "take another name, or remove it first: no file is ever replaced",
        )
    texts = _files(name, kind)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _nearest(name: str, kind: str) -> str:
    """The nearest name that Python, recipes and the template can have."""
    text = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    near = text.lstrip("_0123456789").removeprefix("alignkit_")[:LONGEST].strip("_") or "mine"
    words = set(re.findall(r"\w+", example(kind) + _template("test.txt"))) - set(_names(kind))
    taken = {
        *keyword.kwlist,
        *vars(builtins),
        *(words if kind == "command" else words & {_class(near)}),
    }
    return f"my_{near}"[:LONGEST].strip("_") if {near, _class(near)} & taken else near


def _files(name: str, kind: str) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    contents, module, command = _contents()[kind], f"alignkit_{name}", name.replace("_", "-")
    old, old_class = _names(kind)
    renamed = {old.replace("_", "-"): command, old_class: _class(name), old: name}
    code = re.sub(rf"\b({'|'.join(renamed)})\b", lambda match: renamed[match[0]], example(kind))
    major, minor = (*Version(__version__).release, 0)[:2]
    keys = _contents()["online"] | contents.get("stage", {})
    parts = {
        "check": contents.get("check", ""),
        "first": contents.get("first", ""),
        "model": f"  {contents['model']}\n" if "model" in contents else "",
        "stage": "\n".join(f"    {key}: {value}" for key, value in keys.items()),
    }
    names = {"NAME": name, "CLASS": _class(name)}
    values = {
        **{"name": name, "kind": kind, "module": module, "class": _class(name), "command": command},
        **{
            key: re.sub(r"\b(NAME|CLASS)\b", lambda match: names[match[0]], text)
            for key, text in parts.items()
        },
        "kit": parts["check"].partition("(")[0],
        "package": f"alignkit-{command}",
        "summary": code.split('"""')[1].partition("\n")[0],
        "group": f'"{COMMANDS}"' if kind == "command" else GROUP,
        "versions": f">={major}.{minor},<{major}.{minor + 1}",
        "help": f"alignkit {command} --help" if kind == "command" else f"alignkit plugins {name}",
    }
    files = {
        "pyproject.toml": "pyproject.txt",
        "README.md": "readme.txt",
        "recipe.yaml": "recipe.txt",
        f"test_{name}.py": "test_command.txt" if kind == "command" else "test.txt",
        ".github/workflows/test.yml": "workflow.txt",
    }
    texts = {
        file: Template(_template(template)).substitute(values) for file, template in files.items()
    }
    rows = {"rows.jsonl": contents["rows"]} if "rows" in contents else {}
    return {f"{module}.py": code, **texts, "prompts.jsonl": _template("prompts.jsonl"), **rows}


def _names(kind: str) -> tuple[str, str]:
    """The example's name in recipes, and that of its class; of a command, its function twice."""
    registered = re.search(r'(?:add\("\w+", |\bregister\()(?:"(\w+)", )?(\w+)[,)]', example(kind))
    assert registered is not None
    return registered[1] or registered[2], registered[2]


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@cache
def _contents() -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = yaml.safe_load(_template("kinds.yaml"))
    return read


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
