"""The documentation says what the code has: keys, options, hooks, files, plugins, links, and what examples print."""

import ast
import doctest
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from alignkit import hookspecs
from alignkit.data.sources import DataSource
from alignkit.plugins import load_plugins
from alignkit.settings import LoraSpec, Mix, ModelSpec, Rollout, Settings
from alignkit.testing import check_algorithm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")
ALGORITHMS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DOCS / "algorithms").glob("*.md"))}
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md"))]
HOOKS = [
    name for name, thing in vars(hookspecs).items() if inspect.isfunction(thing) and hasattr(thing, "alignkit_spec")
]
CLAIMS = [
    (kind, registration)
    for kind in ("formats", "algorithms", "rewards", "judges", "steps")
    for registration in load_plugins().registry.registrations(kind)
    if registration.distribution == "alignkit"
]


def documented(key: str, *texts: str) -> bool:
    """Whether a table has a row for the key."""
    return any(f"\n| `{key}` |" in text for text in texts)


@pytest.mark.parametrize("model", [ModelSpec, LoraSpec, Rollout, Mix, Settings], ids=lambda model: model.__name__)
def test_every_key_of_a_recipe(model: type) -> None:
    keys = [info.alias or name for name, info in model.model_fields.items()]
    assert [key for key in keys if not documented(key, RECIPES)] == []


def test_every_key_of_a_data_source() -> None:
    keys = [name for name in DataSource.__dataclass_fields__ if name != "format"]
    assert [key for key in keys if not documented(key, RECIPES)] == []


@pytest.mark.parametrize(("kind", "claim"), CLAIMS, ids=lambda value: getattr(value, "name", None))
def test_every_option_of_a_plugin(kind: str, registration) -> None:
    pages = ALGORITHMS.values() if kind == "algorithms" else [RECIPES]
    assert [key for key in registration.implementation.Options.model_fields if not documented(key, *pages)] == []


@pytest.mark.parametrize(
    "claim", [registration for _, registration in CLAIMS], ids=lambda registration: registration.name
)
def test_every_name_a_recipe_can_use_is_explained(registration) -> None:
    assert any(f"`{registration.name}`" in text for text in (README, RECIPES, *ALGORITHMS.values()))


def test_defaults_in_the_tables_are_those_of_the_code() -> None:
    """Numbers and words; references and mappings are described in words."""
    wrong = []
    for model in (ModelSpec, LoraSpec, Rollout, Settings):
        for name, info in model.model_fields.items():
            row = re.search(rf"\n\| `{info.alias or name}` \|.*", RECIPES)
            if row is None or not isinstance(info.default, bool | int | float | str):
                continue
            told = [cell.strip() for cell in re.split(r"(?<!\\)\|", row[0])][3]
            default = str(info.default).lower() if isinstance(info.default, bool) else info.default
            same = told == default if isinstance(default, str) else float(told) == default
            if not same:
                wrong.append((name, told, default))
    assert wrong == []


def plugins_in(page: Path) -> list[str]:
    """The code blocks that are whole plugins."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if block.startswith("from alignkit import") and "@hookimpl" in block]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "writing-a-plugin.md"], ids=lambda page: page.stem)
def test_plugins_in_the_text_load(page: Path, tmp_path: Path) -> None:
    blocks = plugins_in(page)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"block{number}.py"
        file.write_text(block, encoding="utf-8")
        loaded = load_plugins([file])
        assert loaded.broken == []
        kinds = ("format", "algorithm", "reward", "judge", "step")
        assert [c for kind in kinds for c in loaded.registry.registrations(kind) if c.distribution == file.name]
    load_plugins()


def tutorial() -> str:
    """The blocks of the first four sections, one below the other."""
    text = (DOCS / "writing-a-plugin.md").read_text(encoding="utf-8").split("## 5. The package")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def test_the_tutorial_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "alignkit_reinforce.py"
    file.write_text(tutorial(), encoding="utf-8")
    loaded = load_plugins([file])
    assert loaded.broken == []
    (registration,) = [
        registration
        for registration in loaded.registry.registrations("algorithm")
        if registration.distribution == file.name
    ]
    assert registration.name == "reinforce"
    check_algorithm(registration.implementation)
    load_plugins()


def test_the_code_of_the_tutorial_is_that_of_the_example() -> None:
    """Comments and docstrings may differ."""

    def code(text: str) -> str:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        return ast.unparse(tree)

    example = DOCS / "examples" / "alignkit-reinforce" / "alignkit_reinforce.py"
    assert code(tutorial()) == code(example.read_text(encoding="utf-8"))


def test_examples_print_what_the_text_says() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(>>> .*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "data.md", "docs/data.md", 0)
    assert len(test.examples) == text.count("\n>>> ") > 0
    printed: list[str] = []
    failed = doctest.DocTestRunner().run(test, out=printed.append).failed
    assert not failed, "".join(printed)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"| `{hook}({arguments})` |" in (DOCS / "writing-a-plugin.md").read_text(encoding="utf-8")


def test_hooks_are_found() -> None:
    assert len(HOOKS) >= 14


def test_the_layout_names_every_file_of_the_package() -> None:
    layout = DESIGN.split("## Layout of the code")[1].split("```")[1]
    named = re.findall(r"^  (\w+\.py) ", layout, flags=re.MULTILINE)
    assert len(named) == len(set(named))
    private = {"__init__.py", "__main__.py"}
    assert set(named) == {path.name for path in (ROOT / "alignkit").glob("*.py")} - private


def test_the_table_of_plugins_is_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["readme"] == "README.md"
    rows = dict(re.findall(r"^\| `(alignkit_\w+)` \| (.*) \|$", README, flags=re.MULTILINE))
    assert rows.keys() == project["entry-points"]["alignkit"].keys()
    for registration in load_plugins().registry.registrations("model"):
        assert registration.distribution != "alignkit" or f"`{registration.name}`" in rows[registration.plugin]
    for _, registration in CLAIMS:
        assert f"`{registration.name}`" in rows[registration.plugin]


def test_the_table_of_recipes_is_complete() -> None:
    named = set(re.findall(r"\(recipes/(\w+\.yaml)\)", README))
    assert named == {path.name for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 280


def test_pages_of_algorithms_have_the_same_headings() -> None:
    expected = ["Use", "What is computed", "Differences from the paper", "Metrics explained", "Evidence"]
    headings = {name: re.findall(r"^## (.*)$", text, flags=re.MULTILINE) for name, text in ALGORITHMS.items()}
    assert headings == dict.fromkeys(ALGORITHMS, expected)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{target}#{anchor}"
