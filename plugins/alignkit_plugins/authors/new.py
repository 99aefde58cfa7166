"""`alignkit plugins new`: a package with a plugin, made from the smallest example of its kind.

The example is a module of docs/examples/alignkit-smallest, which is in the wheel: `docs/generate.py`
shows some, and here only the name changes.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

import yaml
from packaging.version import Version

from alignkit import __version__
from alignkit.errors import did_you_mean, refuse
from alignkit.host.registry import KINDS, Registry
from alignkit.io.atomic import write_text
from alignkit.recipe.yaml import parse_document, plain_data

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 20  # letters of a name: lines of the templates have room for as many
FILES = {
    "pyproject.toml": "pyproject.txt",
    "README.md": "readme.txt",
    "recipe.yaml": "recipe.txt",
    "test_$plain.py": "test.txt",
    "prompts.jsonl": "prompts.jsonl",
    ".github/workflows/test.yml": "workflow.txt",
}


def example(kind: str) -> str:
    """Return the module of the example of a kind."""
    folder = Path(__file__).parents[2] / "alignkit_recipes" / "smallest"
    if not folder.is_dir():  # a checkout has it once
        folder = Path(__file__).parents[3] / "docs/examples/alignkit-smallest"
    return (folder / f"smallest_{kind}.py").read_text("utf-8")


def write_package(name: str, registry: Registry, kind: str = "reward") -> list[Path]:
    """Write the package `alignkit-NAME` with a plugin of a kind into a folder of this name; return
    its files.

    Raises RecipeError for a bad or a taken name, an unknown kind, or an existing folder.
    """
    if kind not in KINDS:
        refuse(f"there is no kind '{kind}'", did_you_mean(kind, KINDS, "kinds"))
    code = example(kind)
    old = _registered(code)
    words = {*keyword.kwlist, *vars(builtins), *re.findall(r"\w+", code)} - {*old}
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{,{LONGEST - 1}}}", name) or {name, _class(name)} & words:
        rule = f"at most {LONGEST} lower-case letters, digits and '_', and no word of the module"
        refuse(f"a plugin cannot be called '{name}'", f"a name has {rule}, such as my_reward")
    if registry.has(kind, f".{name}" if old[0][0] == "." else name):
        refuse(f"there is a {kind} '{name}'", f"take another name, such as my_{name}")
    folder = Path(f"alignkit-{name.replace('_', '-')}")
    if folder.exists():
        refuse(f"{folder} exists already", "take another name: no file is ever replaced")
    texts = _files(name, kind)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _registered(code: str) -> tuple[str, str]:
    """The name under which a module registers something, and that of the thing in the module."""
    name, target = re.findall(r'    add\("\w+", "(.+?)", (\w+)', code)[0]
    return name, target


def _files(name: str, kind: str) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    code, release = example(kind), Version(__version__)
    old, old_target = _registered(code)
    registered = f".{name}" if old[0] == "." else name
    target = name.upper() if old_target.isupper() else name
    target = _class(name) if f"class {old_target}" in code else target
    # Where it is defined, and where it is registered
    code = re.sub(rf"^(class |def |){old_target}\b", rf"\1{target}", code, flags=re.MULTILINE)
    code = code.replace(f'"{old}", {old_target}, ', f'"{registered}", {target}, ')
    values = {
        **{"name": registered, "plain": name, "kind": kind, "target": target},
        "module": f"alignkit_{name}",
        "package": f"alignkit-{name.replace('_', '-')}",
        "summary": code.split('"""')[1].partition("\n")[0],
        "versions": f">={release.major}.{release.minor},<{release.major}.{release.minor + 1}",
    }
    kinds = plain_data(_filled("kinds.yaml", values), "kinds.yaml")
    own = kinds[kind]
    recipe = parse_document(kinds["recipe"], Path("recipe.yaml"), own.get("set", ())).data
    words, call = own.get("words", ""), own.get("test", "")
    values |= {
        "recipe": yaml.dump(recipe, sort_keys=False, default_flow_style=None, width=200),
        "command": words,
        "words": "".join(f', "{word}"' for word in words.split()),
        "call": call,
        "kit": call.partition("(")[0],
    }
    values["rules"] = _filled("rules.txt", values) if call else ""
    files = {f"alignkit_{name}.py": code, **own.get("files", {})}
    for file, template in FILES.items():
        files[Template(file).substitute(values)] = _filled(template, values)
    return files


def _filled(template: str, values: Mapping[str, str]) -> str:
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
