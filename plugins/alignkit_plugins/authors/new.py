"""`alignkit plugins new`: a package with one plugin, made from the documented example of its kind.

`templates/KIND.py` is that example: `docs/generate.py` shows it, and here only its name changes.
"""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import yaml
from packaging.version import Version

from alignkit import __version__
from alignkit.errors import did_you_mean, refuse
from alignkit.io.atomic import write_text
from alignkit.registry import KINDS, Registry

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 20  # letters of a name: lines of the templates have room for as many


@cache
def kinds() -> dict[str, dict[str, Any]]:
    """Return the kinds of plugins that can be made, each with what stands around its module."""
    contents: dict[str, dict[str, Any]] = yaml.safe_load(_template("kinds.yaml"))
    return contents


def example(kind: str) -> str:
    """Return the module of a kind's example."""
    return _template(f"{kind}.py")


def write_package(name: str, kind: str, registry: Registry) -> list[Path]:
    """Write the package `alignkit-NAME` into a folder of this name; return its files.

    Raises RecipeError for a bad or a taken name, or an existing folder.
    """
    if kind not in kinds():
        help = f"kinds: {', '.join(kinds())}; docs/plugins has examples of others"
        refuse(f"no kind '{kind}'", did_you_mean(kind, kinds()) or help)
    cls = _class(name)
    words = {*keyword.kwlist, *vars(builtins), *re.findall(r"\w+", example(kind))}
    words -= {*_names(kind)}
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{,{LONGEST - 1}}}", name) or {name, cls} & words:
        rule = f"at most {LONGEST} lower-case letters, digits and '_', and no word of the module"
        refuse(f"a plugin cannot be called '{name}'", f"a name has {rule}, such as my_{kind}")
    taken = [f"{known} '{name}'" for known in KINDS if registry.has(known, name)]
    if importlib.util.find_spec(f"alignkit_{name}") is not None:
        taken.append(f"module alignkit_{name}")
    if taken:
        refuse(f"the name is taken: there is {taken[0]}", f"take another one, such as my_{name}")
    folder = Path(f"alignkit-{name.replace('_', '-')}")
    if folder.exists():
        refuse(
            f"{folder} exists already",
            "take another name, or remove it first: no file is ever replaced",
        )
    texts = _files(name, kind)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _files(name: str, kind: str) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    contents, module, cls = kinds()[kind], f"alignkit_{name}", _class(name)
    renamed = dict(zip(_names(kind), (name, cls), strict=True))
    code = re.sub(rf"\b({'|'.join(renamed)})\b", lambda match: renamed[match[0]], example(kind))
    release = Version(__version__)
    values = {
        "name": name,
        "kind": kind,
        "module": module,
        "class": cls,
        "package": f"alignkit-{name.replace('_', '-')}",
        "summary": code.split('"""')[1].partition("\n")[0],
        "versions": f">={release.major}.{release.minor},<{release.major}.{release.minor + 1}",
        "kit": contents["check"].partition("(")[0],
    }
    for part in ("check", "stages"):
        values[part] = Template(contents[part]).substitute(values).rstrip()
    templates = {
        "pyproject.toml": "pyproject.txt",
        "README.md": "readme.txt",
        "recipe.yaml": "recipe.txt",
        f"test_{name}.py": "test.txt",
        ".github/workflows/test.yml": "workflow.txt",
    }
    files = {f"{module}.py": code, "prompts.jsonl": _template("prompts.jsonl")}
    for file, template in templates.items():
        files[file] = Template(_template(template)).substitute(values)
    if "rows" in contents:
        files["rows.jsonl"] = contents["rows"]
    return files


def _names(kind: str) -> tuple[str, str]:
    """The example's name in recipes, and that of its class."""
    registered = re.search(r'add\("\w+", "(\w+)", (\w+)', example(kind))
    assert registered is not None
    return registered[1], registered[2]


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
