"""Answers in Chromium: Markdown, long and foreign texts, and rankings that are dragged."""

from __future__ import annotations

import pytest

from alignkit_plugins.people.items import Item
from tests.chromium import Person, Visit, expect, needed, visit
from tests.people.pages import pairs
from tests.stores import pair, ranking, turn

__all__ = ["visit"]

pytestmark = needed

MARKDOWN = (
    "**bold** and `code`\n"
    "\n"
    "```py\n"
    "print(1)\n"
    "```\n"
    "\n"
    "[link](http://evil.example) ![i](http://evil.example/i.png)"
)


def test_markdown_and_the_text_as_it_was_written(visit: Visit) -> None:
    items = [pair("*Which?*", MARKDOWN, f"{MARKDOWN} plain"), *pairs(1)]
    with visit(items) as ada:
        asked: list[str] = []
        ada.page.on("request", lambda request: asked.append(request.url))
        answer = ada.page.locator(".answer .text").first
        assert answer.locator("strong").inner_text() == "bold"
        assert answer.locator("pre").inner_text() == "py\nprint(1)"
        assert "[link](http://evil.example) ![i](http://evil.example/i.png)" in answer.inner_text()
        assert ada.page.locator("#prompt a, #prompt img, #answers a, #answers img").count() == 0
        ada.press("m")
        expect(ada.page.locator("#markdown-button")).to_have_attribute("aria-pressed", "false")
        assert answer.inner_text().startswith(MARKDOWN)
        ada.press("Digit1", "Enter")
        ada.prompt_changes("*Which?*")
        expect(ada.page.locator("#markdown-button")).to_be_hidden()  # there is none in this one
        ada.press("u")
        ada.shows("*Which?*")  # the choice stays
        ada.press("m")
        ada.shows("Which?")
        assert ada.page.locator("#prompt em").count() == 1
        assert not [url for url in asked if "evil" in url]


ARABIC = "مرحبا بكم في هذا النص الطويل. " * 40
LONG = {
    "100 kB": ("word " * 20_000, "x" * 100_000),
    "code": ("```\n" + "y = f(x) + " * 60 + "\n```", f"`{'z' * 3000}`"),
    "table": (
        "|" + "column|" * 30 + "\n|" + "-|" * 30 + "\n|" + "cell|" * 30,
        "- " * 30 + "nested",
    ),
    "right to left": (ARABIC, f"**{ARABIC}**"),
    "html": (
        "<table width=9000><tr><td>" + "<b>x</b>" * 500,
        "<div style='width:9000px'>wide</div>",
    ),
}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", LONG)
def test_no_text_makes_the_page_wider(visit: Visit, name: str, width: int) -> None:
    one, other = LONG[name]
    nine = tuple(f"{n} {one if n % 2 else other}" for n in range(9))
    items = [
        pair(f"{name} {one}", one, other),
        Item("ranking", (turn(f"nine {one}"),), nine),
        Item("review", (turn(f"review {one}"),), nine[:4]),
    ]
    with visit(items, width=width) as ada:
        for number, keys in enumerate((["Digit1"], [*"abcdefghi"], [*"4444abcd"]), 1):
            assert ada.page.evaluate("document.documentElement.scrollWidth") <= width
            if width > 860 or number > 1:  # on a phone, the scale of a pair is under the answers
                stays_on_screen(ada, "#submit")
            ada.press("End")
            stays_on_screen(ada, "#submit")  # however long the answers are
            ada.press(*keys, "Enter")
            ada.shows(f"{number} of ", "#counts")
        ada.finished()


def stays_on_screen(ada: Person, *selectors: str) -> None:
    """Wait until they are visible, because scrolling takes the browser a moment."""
    inside = """selectors => selectors.every((selector) => {
        const box = document.querySelector(selector).getBoundingClientRect();
        return box.top >= -1 && box.bottom <= innerHeight + 1;
    })"""
    ada.page.wait_for_function(inside, arg=list(selectors))


# Rankings


def drag(ada: Person, start: str, end: str, share: float = 0.5) -> None:
    """Drag one element to a place in another: share of its width."""
    one, other = (ada.page.locator(selector).first.bounding_box() for selector in (start, end))
    mouse = ada.page.mouse
    mouse.move(one["x"] + min(40, one["width"] / 2), one["y"] + one["height"] / 2)
    mouse.down()
    x, y = other["x"] + share * other["width"], other["y"] + other["height"] / 2
    mouse.move(x, y, steps=8)
    mouse.up()


def order(ada: Person) -> list[str]:
    return [text.replace("\n", "")[1:] for text in ada.page.locator(".place").all_inner_texts()]


def test_a_ranking_is_dragged(visit: Visit) -> None:
    """Titles and letters, to the end, between two others, onto an equal one, and out again."""
    with visit([ranking(), ranking("next")]) as ada:
        for card in (1, 2, 3):
            drag(ada, f".answer:nth-child({card}) h2", ".tray", 0.99)
        assert order(ada) == ["A", "B", "C"]
        badges = ada.page.locator(".badge:not([hidden])")
        assert badges.all_inner_texts() == ["rank 1", "rank 2", "rank 3"]
        drag(ada, "[data-name=C]", ".place:nth-child(1)", 0.05)
        assert order(ada) == ["C", "A", "B"]
        assert badges.all_inner_texts() == ["rank 2", "rank 3", "rank 1"]
        drag(ada, "[data-name=C]", ".place:nth-child(3)", 0.95)
        assert order(ada) == ["A", "B", "C"]
        drag(ada, "[data-name=D]", ".place:nth-child(2)", 0.5)
        assert order(ada) == ["A", "BD", "C"]
        drag(ada, "[data-name=D]", "#prompt")
        assert order(ada) == ["A", "B", "C"] and ada.page.locator("#submit").is_disabled()
        ada.page.mouse.move(5, 300)
        drag(ada, ".answer:nth-child(4) h2", "#prompt")  # nowhere
        assert order(ada) == ["A", "B", "C"]
        ada.page.locator(".answer").nth(3).click(position={"x": 80, "y": 60})
        assert order(ada) == ["A", "B", "C", "D"]
        assert ada.page.locator(".ghost").count() == 0
        ada.press("Enter")
        ada.prompt_changes("Rank")
        assert ada.labels()[0].payload["ranks"] == [1, 2, 3, 4]
