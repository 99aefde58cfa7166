"""The documentation describes the code: options, hooks, packages, plugins, links, and what examples
print.
"""

import ast
import doctest
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from alignkit import Algorithm, hookspecs
from alignkit.plugins import load_plugins
from alignkit.registry import KINDS as ALL_KINDS
from alignkit.testing import check_algorithm, check_reward
from alignkit_plugins.authors.new import example

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = DOCS / "plugins" / "api"
PAGES = [
    ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "AGENTS", "CHANGELOG")
] + sorted(DOCS.rglob("*.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS[ROOT / "README.md"]
TUTORIAL, REFERENCE = (
    TEXTS[DOCS / "plugins" / "tutorial.md"],
    TEXTS[DOCS / "plugins" / "reference.md"],
)
HOOKS = [
    name
    for name, hook in vars(hookspecs).items()
    if hasattr(hook, "alignkit_spec") and name != "register"
]
KINDS = ("format", "algorithm", "reward", "judge", "environment", "step", "filter", "engine")
REGISTRATIONS = [
    (kind, registration)
    for kind in KINDS
    for registration in load_plugins().registrations(kind)
    if registration.distribution == "alignkit"
]


@pytest.mark.parametrize(
    ("kind", "registration"), REGISTRATIONS, ids=lambda value: getattr(value, "name", None)
)
def test_options_of_every_plugin_are_generated(kind: str, registration) -> None:
    marker = re.compile(
        rf"^<!-- generated: {kind} (?:\w+ )*{registration.name}(?: \w+)* -->$", re.MULTILINE
    )
    marked = any(marker.search(text) for text in TEXTS.values())
    assert marked or not registration.implementation.Options.model_fields


@pytest.mark.parametrize(
    ("kind", "registration"), REGISTRATIONS, ids=lambda value: getattr(value, "name", None)
)
def test_every_name_a_recipe_can_use_is_explained(kind: str, registration) -> None:
    mentioned = re.compile(rf"`{registration.name}`|\b{kind}: \{{?{registration.name}\b")
    pages = {
        page: text for page, text in TEXTS.items() if page.name != "index.md"
    }  # a list is no explanation
    assert any(mentioned.search(text) for text in pages.values())


@pytest.mark.slow
def test_plugins_in_the_text_follow_the_rules(tmp_path: Path) -> None:
    """Those written by hand; the generated ones are made into packages by
    tests/authors/test_new.py.
    """
    pages = [
        ROOT / "README.md",
        API / "algorithms.md",
        API / "formats-and-steps.md",
        API / "rewards.md",
    ]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.M | re.S)
    ]
    assert any(example() in page for page in TEXTS.values())
    files = {
        f"block{number}.py": block
        for number, block in enumerate(blocks)
        if "@hookimpl" in block and block != example()
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    loaded = load_plugins([tmp_path / name for name in files])
    assert loaded.broken == [] and len(files) == 7
    found = [
        one for kind in ALL_KINDS for one in loaded.registrations(kind) if one.distribution in files
    ]
    assert {one.distribution for one in found} == files.keys()
    checked = [
        one.implementation
        for one in found
        if one.name in ("my_dpo", "distillation_example", "rated")
    ]
    assert len(checked) == 3
    for cls in checked:
        if issubclass(cls, Algorithm):
            check_algorithm(cls)
        else:
            check_reward(cls, {"judge": "brief"})
    load_plugins()


def tutorial() -> str:
    """The code of the tutorial's first four sections."""
    sections = TUTORIAL.split("## 5. The package")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", sections, flags=re.MULTILINE | re.DOTALL))


def test_the_tutorial_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "alignkit_reinforce.py"
    file.write_text(tutorial(), encoding="utf-8")
    loaded = load_plugins([file])
    assert loaded.broken == []
    (registration,) = [c for c in loaded.registrations("algorithm") if c.distribution == file.name]
    assert registration.name == "reinforce"
    check_algorithm(registration.implementation)
    load_plugins()


def test_the_tutorial_and_the_example_have_the_same_code() -> None:
    """Comments and docstrings may differ."""

    def code(text: str) -> str:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                del node.body[0]
        return ast.unparse(tree)

    example = DOCS / "examples" / "alignkit-reinforce" / "alignkit_reinforce.py"
    assert code(tutorial()) == code(example.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["formats-and-steps.md", "data.md"])
def test_examples_print_what_the_text_says(page: str) -> None:
    text = TEXTS[API / page]
    blocks = re.findall(r"^```python\n(>>> .*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest(
        "\n".join(blocks), {}, page, f"docs/plugins/api/{page}", 0
    )
    assert len(test.examples) == text.count("\n>>> ") > 0
    printed: list[str] = []
    failed = doctest.DocTestRunner().run(test, out=printed.append).failed
    assert not failed, "".join(printed)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"| `{hook}({arguments})` |" in TEXTS[DOCS / "plugins" / "api" / "runs.md"]


def test_recipes_are_listed() -> None:
    listed = set(re.findall(r"\(\.\./recipes/(\w+\.yaml)\)", TEXTS[DOCS / "recipes.md"]))
    assert listed == {path.name for path in (ROOT / "recipes").glob("*.yaml")}


def test_every_page_is_in_the_index() -> None:
    api = TEXTS[DOCS / "plugins" / "api" / "index.md"]
    index = TEXTS[DOCS / "index.md"] + api.replace("](", "](plugins/api/")
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents]
    assert [
        page
        for page in pages
        if f"({page}" not in index and page != "index.md" and "examples" not in page
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", TEXTS[page]):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = Counter(
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            )
            again = {
                f"{slug}-{number}" for slug, count in slugs.items() for number in range(1, count)
            }
            assert anchor in slugs.keys() | again, f"{target}#{anchor}"
