"""`alignkit plugins new`: a package with a reward, made from the documented example of one.

`templates/reward.py` is that example: `docs/generate.py` shows it, and here only its name changes.
"""

from __future__ import annotations

import builtins
import keyword
import re
from pathlib import Path
from string import Template

from packaging.version import Version

from alignkit import __version__
from alignkit.errors import refuse
from alignkit.host.registry import Registry
from alignkit.io.atomic import write_text

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 20  # letters of a name: lines of the templates have room for as many
FILES = {
    "pyproject.toml": "pyproject.txt",
    "README.md": "readme.txt",
    "recipe.yaml": "recipe.txt",
    "test_$name.py": "test.txt",
    "prompts.jsonl": "prompts.jsonl",
    ".github/workflows/test.yml": "workflow.txt",
}


def example() -> str:
    """Return the module of the example."""
    return _template("reward.py")


def write_package(name: str, registry: Registry) -> list[Path]:
    """Write the package `alignkit-NAME` into a folder of this name; return its files.

    Raises RecipeError for a bad or a taken name, or an existing folder.
    """
    words = {*keyword.kwlist, *vars(builtins), *re.findall(r"\w+", example())} - {"calm", "Calm"}
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{,{LONGEST - 1}}}", name) or {name, _class(name)} & words:
        rule = f"at most {LONGEST} lower-case letters, digits and '_', and no word of the module"
        refuse(f"a plugin cannot be called '{name}'", f"a name has {rule}, such as my_reward")
    if registry.has("reward", name):
        refuse(f"there is a reward '{name}'", f"take another name, such as my_{name}")
    folder = Path(f"alignkit-{name.replace('_', '-')}")
    if folder.exists():
        refuse(f"{folder} exists already", "take another name: no file is ever replaced")
    texts = _files(name)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _files(name: str) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    code = re.sub(r"\bcalm\b", name, re.sub(r"\bCalm\b", _class(name), example()))
    release = Version(__version__)
    values = {
        "name": name,
        "module": f"alignkit_{name}",
        "class": _class(name),
        "package": f"alignkit-{name.replace('_', '-')}",
        "summary": code.split('"""')[1],
        "versions": f">={release.major}.{release.minor},<{release.major}.{release.minor + 1}",
    }
    files = {f"alignkit_{name}.py": code}
    for file, template in FILES.items():
        path = Template(file).substitute(values)
        files[path] = Template(_template(template)).substitute(values)
    return files


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")
