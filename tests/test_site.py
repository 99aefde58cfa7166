"""The documentation site: its pages, its navigation, the mistakes that stop its build, and what its
pages load.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS / "site"), str(DOCS)]
import make_site  # noqa: E402
import site_links  # noqa: E402

del sys.path[:2]
EXCERPTS = [("tutorials/constitutional.md", "The recipe"), ("recipes.md", "Rounds")]
generates = pytest.mark.skipif(
    not (find_spec("zensical") and find_spec("mkdocstrings")), reason="needs the extra docs"
)

# Pages


def test_the_navigation_has_every_page_once(tmp_path: Path) -> None:
    nav = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert Counter(make_site.in_navigation(nav)) == Counter(make_site.prepare(ROOT, tmp_path))


def test_anchors_are_those_of_github() -> None:
    text = "# A `b_c` & d!\n\n## Same\n\n```\n# no heading\n```\n\n## Same\n"
    lines = make_site.prepared(text, DOCS).splitlines()
    assert lines[0] == "# A `b_c` & d! { #a-b_c--d }"
    assert [line for line in lines if "ame" in line] == ["## Same { #same }", "## Same { #same-1 }"]
    assert "# no heading" in lines


# Links of a built site


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="x">A</h1><a href="#x">1</a><a href="#y">2</a><a href="b.html#z">3</a><a '
        'href="c.html">4</a><a href="..">5</a><img src="d.png"><a '
        'href="https://example.org/none">6</a>'
    )
    (tmp_path / "b.html").write_text(
        '<a name="z">B</a><script src="https://example.org/x.js"></script>'
    )
    assert list(site_links.broken(tmp_path)) == [
        "a.html: #y",
        "a.html: c.html",
        "a.html: ..",
        "a.html: d.png",
    ]
    assert list(site_links.foreign(tmp_path)) == ["b.html: https://example.org/x.js"]


# The build

SITE = {
    "search.js": "var __index = {",
    "index.html": "<title>Overview - alignkit</title>",
    "recipes/dpo.yaml.html": "Direct Preference Optimization",
    "docs/algorithms/rejection_sampling.html": "<td>quantile | absolute</td>",
    "docs/recipes.html": "such as {base: HuggingFaceTB/SmolLM2-135M-Instruct}",
    "docs/plugins/api/algorithms.html": "Factor in the sum of the loss",
}


@pytest.mark.slow
@generates
def test_the_site_is_built(tmp_path: Path) -> None:
    out = tmp_path / "site"
    make_site.build(ROOT, tmp_path / "work", out)
    for file, said in SITE.items():
        assert said in (out / file).read_text(encoding="utf-8"), file
    assert re.search(r'src="(\./)?worker\.js"', (out / "index.html").read_text(encoding="utf-8"))
    assert list(site_links.broken(out)) == list(site_links.foreign(out)) == []


MISTAKES = {
    "[x](recipes.md#no-such-anchor)": "does not exist",
    "![x](assets/no_such.svg)": "no_such.svg",
    '<img src="https://example.org/x.png">': "another host: docs/scale.html",
}


@pytest.mark.slow
@generates
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_the_build(mistake: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("docs", "recipes"):
        shutil.copytree(ROOT / name, root / name)
    for name in make_site.PAGES[:-1]:
        shutil.copyfile(ROOT / name, root / name)
    page = root / "docs" / "scale.md"
    page.write_text(f"{page.read_text(encoding='utf-8')}\n{mistake}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        make_site.build(root, tmp_path / "work", tmp_path / "site")
    assert MISTAKES[mistake] in str(stopped.value)
    assert not (tmp_path / "site").exists()


# Excerpts


@pytest.mark.parametrize(("page", "title"), EXCERPTS)
def test_excerpts_are_in_the_recipe(page: str, title: str) -> None:
    """Every line of the section on the recipe, in the order of a recipe that it links to."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    names = re.findall(r"\((\S+\.yaml)\)", section)
    recipes = [
        lines_of(((DOCS / page).parent / name).read_text(encoding="utf-8")) for name in names
    ]
    excerpts = re.findall(r"^```yaml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert excerpts
    for excerpt in excerpts:
        rests = [iter(recipe) for recipe in recipes]
        assert any(all(line in rest for line in lines_of(excerpt)) for rest in rests), excerpt


def lines_of(text: str) -> list[str]:
    """Without comments."""
    return [re.sub(r"\s+#.*$", "", line.rstrip()) for line in text.splitlines()]
