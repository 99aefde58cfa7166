"""The pictures of README and the pages show what today's product shows; `make pictures` makes them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import make_charts  # noqa: E402
import make_gallery  # noqa: E402
import make_pictures  # noqa: E402

del sys.path[0]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ASSETS = ROOT / "docs" / "assets"


@pytest.mark.parametrize("name", [*make_pictures.TERMINALS, *make_pictures.PAGES])
def test_texts_of_pictures_are_those_of_the_product(name: str) -> None:
    assert make_pictures.missing(name) == [], "run `make pictures`"


@pytest.mark.parametrize("name", make_gallery.RECIPES)
def test_reports_of_the_gallery_are_those_that_would_be_written(name: str) -> None:
    folder = make_gallery.GALLERY / name
    stored = (folder / "report.html").read_text(encoding="utf-8")
    assert make_gallery.page_of(folder) == stored, "run `make pictures`"


def test_charts_are_those_of_the_stored_numbers() -> None:
    for file, text in make_charts.charts().items():
        assert (ASSETS / file).read_text(encoding="utf-8") == text, "run `make pictures`"


def test_every_picture_is_made_and_shown() -> None:
    """None is drawn by hand, and none is left over."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    made = {f"{name}.svg" for name in make_pictures.TERMINALS} | {*make_charts.charts()}
    made |= {f"{name}.png" for name in make_pictures.PAGES}
    kept = {path.name for path in ASSETS.iterdir() if path.suffix in (".svg", ".png")}
    assert kept == made == {*re.findall(r"assets/([\w-]+\.(?:svg|png))", text)}
