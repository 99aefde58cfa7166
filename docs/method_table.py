"""The index of papers: each method, the papers that its docstring cites, and where it is tested and
measured.

A class's own docstring goes before its module's. A file of known answers belongs to a method if it
is called so, or compares a function of the method that no other file compares.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignkit.host.plugins import load_plugins, plugins
from alignkit.host.registry import Registration
from alignkit.recipe.references import options_of
from alignkit.recipe.yaml import shipped
from alignkit_plugins.recipe_tools.options import option_rows
from benchmarks.markdown import markdown_table
from benchmarks.papers.claim import RECIPES
from benchmarks.papers.page import claims, complete, words
from tests.net import test_golden

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Of a plugin, and the key of a recipe that names it
KINDS = {"algorithm": "algorithm", "reward": "reward", "combination": "reward", "judge": "judge"}
KINDS |= {"filter": "filter", "step": "step"}
NUMBER = r"[\d.A-Z]*[\dA-Z]"
WHERE = rf"(?:eqs?\.|sections?|algorithm|figures?|table|appendix) {NUMBER}(?: and (?:[a-z]+ )?{NUMBER})?"
CITED = re.compile(
    r"\b([A-Z][\w-]+(?: et al\.| and [A-Z][A-Za-z ]+)?),? ((?:19|20)\d\d)\b"
    rf"(?:(?:(?! et al)[^;()]){{,90}}?\(?arXiv:(\d+\.\d+)((?:, {WHERE})*))?"
)
OF_OTHERS = ("rewards, judges, steps", "papers", "known answers; measured; recipe")
HEADER = ("method", "papers", "keys", "known answers", "exact optimum", "measured", "recipe")


def text() -> str:
    """Tables of what is here, and of what packages show."""
    load_plugins()
    algorithms, others = list[list[str]](), list[list[str]]()
    for kind in KINDS:
        ours = [one for one in plugins().registrations(kind) if one.distribution == "alignkit"]
        for row in filter(None, map(_row, ours)):
            if kind == "algorithm":
                algorithms.append(row)
            else:
                method, cited, _, answers, optimum, *shown = row
                proof = [answers, "exact optimum" * bool(optimum), *shown]
                others.append([method, cited, "; ".join(filter(None, proof))])
    every = markdown_table(HEADER, algorithms), markdown_table(OF_OTHERS, others)
    packages = markdown_table(("package", "papers"), list(_packages()))
    return "\n\n".join([*every, "Packages show more:", packages]) + "\n"


def papers(docstring: str | None) -> str:
    """The papers that a docstring cites, with the places that it names."""
    found = dict[str, str]()
    for author, year, number, where in CITED.findall(" ".join((docstring or "").split())):
        name = f"{author} {year}"
        link = f"[{name}](https://arxiv.org/abs/{number}){where}" if number else name
        found[name] = max(found.get(name, ""), link, key=len)
    return "; ".join(found.values())


def _row(one: Registration) -> list[str]:
    """Empty if the method cites no paper."""
    method: Any = one.implementation
    module = importlib.import_module(method.__module__)
    cited = papers(method.__doc__) or papers(module.__doc__)
    if not cited:
        return []
    recipes = [f"`{name}`" for name, path in shipped().items() if _names(path, one)]
    keys = [f"`{row.name}`" for row in option_rows(options_of(one)) if one.kind == "algorithm"]
    return [
        _linked(one),
        cited,
        ", ".join(keys),  # of others, the page has them
        ", ".join(f"`{name}`" for name in _known_answers(one.name, method)),
        "yes" if re.search(rf"\b{one.name}\b", _read(ROOT / "tests/net/test_optimum.py")) else "",
        "; ".join(_measured(one)),
        *(recipes or [""])[:1],
    ]


def _linked(one: Registration) -> str:
    """Its name, with a link to the page that has its options."""
    options = re.compile(rf"<!-- generated: {one.kind} (?:\w+ )*{one.name}\b")
    for page in sorted(DOCS.rglob("*.md")):
        if options.search(_read(page)):
            return f"[`{one.name}`](../{page.relative_to(DOCS).as_posix()})"
    return f"`{one.name}`"


def _known_answers(name: str, method: type) -> Iterator[str]:
    """Files of tests/golden."""
    module = importlib.import_module(method.__module__)
    functions = inspect.getmembers(module, inspect.isfunction)
    own = {each for each, function in functions if getattr(test_golden, each, None) is function}
    own |= set(re.findall(r"\bF\.\w+", "".join(map(_source, method.__mro__))))
    compared = _compared()
    shared = Counter(each for names in compared.values() for each in names)
    for file, names in compared.items():
        if name in file.split("_") or any(shared[each] == 1 for each in own & names):
            yield file


def _source(each: type) -> str:
    return inspect.getsource(each) if each.__module__.startswith("alignkit_plugins") else ""


@cache
def _compared() -> dict[str, set[str]]:
    """By file of known answers the words of what computes its results."""
    found = test_golden.FORMULAS.items()
    return {
        name: set(re.findall(r"(?:\bF\.)?\w+", inspect.getsource(each))) for name, each in found
    }


def _measured(one: Registration) -> Iterator[str]:
    methods = yaml.safe_load(_read(ROOT / "benchmarks/outcomes/methods.yaml"))
    if one.name in methods:
        yield "[quick start](../benchmarks/outcomes.md#the-quick-start)"
    for claim in filter(complete, claims()):
        recipe = RECIPES / f"{claim.name}.yaml"
        if recipe.is_file() and _names(recipe, one):
            yield f"[{words(claim)['title'].partition(':')[0]}]({claim.name}.md)"


def _names(recipe: Path, one: Registration) -> bool:
    used = rf"^[^#]*\b{KINDS[one.kind]}s?: [^\n#]*\b{one.name}\b"
    return re.search(used, _read(recipe), re.MULTILINE) is not None


def _packages() -> Iterator[list[str]]:
    for file in sorted((DOCS / "examples").glob("*/alignkit_*.py")):
        if cited := papers(_read(file).split('"""')[1]):
            name = file.stem.removeprefix("alignkit_").replace("_", "-")
            yield [f"[{name}](../examples/{file.parent.name}/README.md)", cited]


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
