"""The documentation describes the code: options, hooks, packages, plugins, links, and what examples
print.
"""

import ast
import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from alignkit.contract import hookspecs
from alignkit.host.plugins import load_plugins
from alignkit.testing import check_algorithm, check_reward
from alignkit_plugins.authors.new import example
from tests.house import HOUSE, LAYERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = DOCS / "plugins" / "api"
PAGES = [
    ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "AGENTS", "CHANGELOG")
] + sorted(DOCS.rglob("*.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
KINDS = ("format", "algorithm", "reward", "judge", "environment", "step", "filter", "engine")


def test_every_name_a_recipe_can_use_is_explained_and_its_options_are_generated() -> None:
    explained = "\n".join(text for page, text in TEXTS.items() if page.name != "index.md")
    for kind in KINDS:
        for registration in load_plugins().registrations(kind):
            if registration.distribution != "alignkit":
                continue
            name = registration.name
            assert re.search(rf"`{name}`|\b{kind}: \{{?{name}\b", explained), name
            if registration.implementation.Options.model_fields:
                marker = rf"^<!-- generated: {kind} (?:\w+ )*{name}(?: \w+)* -->$"
                assert re.search(marker, explained, re.MULTILINE), name


@pytest.mark.slow
def test_plugins_in_the_text_follow_the_rules(tmp_path: Path) -> None:
    """But for a command, which is loaded in another way."""
    files = []
    for page in (ROOT / "README.md", *sorted(API.glob("*.md"))):
        for block in re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.M | re.S):
            if (
                "@hookimpl" in block
                and block != example("reward")
                and "register_commands" not in block
            ):
                files.append(tmp_path / f"block{len(files)}.py")
                files[-1].write_text(block, encoding="utf-8")
    loaded = load_plugins(files)
    assert loaded.broken == [] and len(files) == 9
    checks = {"my_dpo": check_algorithm, "distillation_example": check_algorithm}
    for name, check in checks.items():
        check(loaded.get("algorithm", name).implementation)
    check_reward(loaded.get("reward", "rated").implementation, {"judge": "brief"})
    load_plugins()


def test_the_tutorial_and_the_example_have_the_same_code() -> None:
    """Its first four sections; comments and docstrings may differ."""

    def code(text: str) -> str:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            if documented and ast.get_docstring(node) is not None:
                del node.body[0]
        return ast.unparse(tree)

    sections = TEXTS[DOCS / "plugins" / "tutorial.md"].split("## 5. The package")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", sections, re.M | re.S)
    example = DOCS / "examples" / "alignkit-reinforce" / "alignkit_reinforce.py"
    assert code("\n".join(blocks)) == code(example.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["formats-and-steps.md", "data.md"])
def test_examples_print_what_the_text_says(page: str) -> None:
    text = TEXTS[API / page]
    blocks = re.findall(r"^```python\n(>>> .*?)^```", text, re.M | re.S)
    parsed = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    assert len(parsed.examples) == text.count("\n>>> ") > 0
    printed: list[str] = []
    assert not doctest.DocTestRunner().run(parsed, out=printed.append).failed, "".join(printed)


def test_every_hook_is_listed_with_its_arguments() -> None:
    for name, hook in vars(hookspecs).items():
        if hasattr(hook, "alignkit_spec") and name != "register":
            arguments = ", ".join(inspect.signature(hook).parameters)
            assert f"| `{name}({arguments})` |" in TEXTS[API / "runs.md"]


def test_what_a_plugin_may_import_is_what_the_house_allows() -> None:
    listed = TEXTS[API / "index.md"].partition("| who | imports |")[2].partition("\n\n")[0]
    every, own, _ = (re.findall(r"`(\w[\w.]*)`", line) for line in listed.splitlines()[2:])
    missing = [name for name in every if importlib.util.find_spec(name) is None]
    rooms = {room for layer in LAYERS for room in layer}
    assert not missing
    assert {*own} == {*HOUSE["contract_only"]} | rooms - {*HOUSE["rooms"], "cli", "__main__"}


def test_numbers_on_the_front_page_are_those_of_the_pages_that_have_them() -> None:
    readme = " ".join(TEXTS[ROOT / "README.md"].split())
    (count,) = re.findall(r"^(\d+) of the", TEXTS[DOCS / "silent-bugs.md"], re.M)
    stored = TEXTS[DOCS / "benchmarks" / "outcomes.md"] + TEXTS[DOCS / "evaluate.md"]
    numbers = re.findall(r"\d+% \[\d+, \d+\]", readme)
    assert f"[{count} silent faults" in readme and len(numbers) == 7
    assert [number for number in numbers if number not in stored] == []
    gains = re.findall(r"\d+ points \[\d+, \d+\]", readme)
    assert len(gains) == 2
    assert [gain for gain in gains if f"+{gain}" not in stored] == []


WORDS_FROM_ELSEWHERE = "RLVR, multi-turn, LLM-as-a-judge, VRAM, FAQ, flash attention, sweep"


def test_words_that_people_search_for_lead_to_a_page() -> None:
    index = TEXTS[DOCS / "index.md"].partition("## If you search for")[2].partition("\n## ")[0]
    for word in WORDS_FROM_ELSEWHERE.split(", "):
        (line,) = re.findall(rf"^\| [^|]*\b{word}\b.*$", index, re.M)
        pages = [DOCS / target for target in re.findall(r"\]\(([\w/.-]+)", line)]
        assert any(word in TEXTS[page] for page in pages), word


def test_every_page_and_recipe_is_listed() -> None:
    listed = set(re.findall(r"\(\.\./recipes/(\w+\.yaml)\)", TEXTS[DOCS / "recipes.md"]))
    assert listed == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    index = TEXTS[DOCS / "index.md"] + TEXTS[API / "index.md"].replace("](", "](plugins/api/")
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).as_posix()
        assert f"({name}" in index or page.name == "index.md" or "examples" in name, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", TEXTS[page]):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            plain = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            # A title that was there before has a number
            again = {f"{slug}-{plain[:place].count(slug)}" for place, slug in enumerate(plain)}
            assert anchor in {*plain} | again, f"{target}#{anchor}"


def test_what_to_open_has_what_to_look_for() -> None:
    table = TEXTS[DOCS / "architecture.md"].partition("| look for |\n")[2]
    assert "`verdicts`" in table
    for row in table.replace("`P/", "`plugins/alignkit_plugins/").splitlines():
        words = re.findall(r"`([\w/.]+)`", row)
        code = "\n".join((ROOT / word).read_text("utf-8") for word in words if "/" in word)
        for name in {*words} - {word for word in words if "/" in word}:
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", code, re.M), row
