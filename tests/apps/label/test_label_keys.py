"""Keys in Chromium: other keyboards, input methods, held keys, the browser's own keys, and hints on the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit_plugins.people.items import Item
from tests.apps.label.chromium import expect, needed, person, send
from tests.apps.label.pages import pairs
from tests.stores import ranking, scores, turn

pytestmark = needed

AZERTY = "&é\"'(-è_"  # what the row of digits types without Shift


def test_a_french_keyboard(browser: Any, tmp_path: Path) -> None:
    """The row of digits works with and without Shift, and letters are those that the keys type."""
    with person(browser, tmp_path, [*pairs(1), ranking()]) as ada:
        checked = ada.page.locator("input[name=scale]:checked")
        for place, sign in enumerate(AZERTY):
            send(ada, f"Digit{place + 1}", sign)
            assert checked.get_attribute("value") == str(place)
        send(ada, "Digit3", "3", shiftKey=True)
        assert checked.get_attribute("value") == "2"
        send(ada, "Digit1", "!", shiftKey=True)  # an American keyboard, on which this is no digit
        send(ada, "Digit4", "4", ctrlKey=True)
        assert checked.get_attribute("value") == "2"
        ada.press("Enter")
        ada.shows("Rank")
        for code, key in (("KeyQ", "a"), ("KeyB", "b"), ("Equal", "="), ("KeyC", "c"), ("KeyD", "d")):
            send(ada, code, key)
        ada.press("Enter")
        ada.finished()
        assert ada.labels()[1].payload["ranks"] == [1, 2, 2, 3]


def test_a_keyboard_without_latin_letters(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, pairs(2)) as ada:
        send(ada, "KeyG", "п")
        expect(ada.page.locator("#guidelines")).to_be_visible()


def test_an_input_method_keeps_its_keys(browser: Any, tmp_path: Path) -> None:
    """While a word is composed, Enter ends it, and neither submits nor leaves the text box."""
    with person(browser, tmp_path, pairs(2)) as ada:
        ada.press("Digit2", "n")
        devtools = ada.page.context.new_cdp_session(ada.page)
        devtools.send("Input.imeSetComposition", {"text": "に", "selectionStart": 1, "selectionEnd": 1})
        devtools.send("Input.imeSetComposition", {"text": "にほ", "selectionStart": 2, "selectionEnd": 2})
        for key, modifiers in (("Process", 0), ("Enter", 0), ("Enter", 2), ("Escape", 0)):  # 2 is Ctrl
            pressed = {"windowsVirtualKeyCode": 229, "key": key, "modifiers": modifiers}
            devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **pressed})
        assert ada.labels() == [] and ada.page.evaluate("document.activeElement.id") == "note"
        devtools.send("Input.insertText", {"text": "日本"})
        expect(ada.page.locator("#note")).to_have_value("日本")
        ada.press("Escape", "Enter")
        ada.shows("1 of ", "#counts")
        assert ada.labels()[0].payload["note"] == "日本"


def test_a_held_key_acts_once(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, pairs(3)) as ada:
        first = ada.prompt()
        ada.press("Digit1")
        for _ in range(5):
            ada.page.keyboard.down("Enter")  # the second and later ones are repetitions
        ada.prompt_changes(first)
        second = ada.prompt()
        for key in ("Digit1", "Enter", "Enter"):
            ada.page.keyboard.down(key)
        ada.page.keyboard.up("Enter")
        assert ada.prompt() == second and len(ada.labels()) == 1
        for _ in range(5):
            ada.page.keyboard.down("u")
        ada.shows(first)
        assert [event.kind for event in ada.store.events()] == ["label", "undo"]


@pytest.mark.parametrize("key", ["d", "w", "t", "r", "l", "n", "p", "f", "s", "1", "Enter", "Tab"])
def test_the_browser_keeps_its_keys(browser: Any, tmp_path: Path, key: str) -> None:
    with person(browser, tmp_path, pairs(2)) as ada:
        ada.press("Digit1")
        for modifier in ("ctrlKey", "metaKey", "altKey"):
            free = ada.page.evaluate(
                """([key, modifier]) => document.body.dispatchEvent(new KeyboardEvent("keydown",
                    {key, code: "Key" + key.toUpperCase(), [modifier]: true, bubbles: true, cancelable: true}))""",
                [key, modifier],
            )
            assert free  # nobody called preventDefault
        assert ada.page.locator("dialog[open]").count() == 0 and ada.labels() == []
        assert ada.page.evaluate("document.activeElement.id") == "item"


ITEMS = [
    *pairs(1), ranking(count=9), scores(), Item("safety", (turn("s"),), ("yes", "no")),
    Item("demonstration", (turn("d"),), ("old",)), Item("thumb", (turn("t"),), ("fine",)),
]  # fmt: skip


def test_every_control_names_its_key(browser: Any, tmp_path: Path) -> None:
    """Except letters to drag, whose name is their key, and Expand, which names it when the mouse is over it."""
    with person(browser, tmp_path, ITEMS) as ada:
        for number in range(len(ITEMS)):
            without = ada.page.evaluate(
                """() => [...document.querySelectorAll("header button, #form button, #form label")]
                    .filter((control) => control.checkVisibility() && !control.matches(".chip"))
                    .filter((control) => !control.querySelector("kbd")).map((control) => control.outerHTML)"""
            )
            assert without == []
            before = ada.prompt()
            ada.press("s", "Digit1")
            if number < len(ITEMS) - 1:
                ada.prompt_changes(before)
        ada.finished()


def test_keys_of_the_dialogs(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, pairs(2)) as ada:
        for keys, answer in ((("c", "n"), "no"), (("c", "y"), "yes"), (("c", "Escape", "n"), "yes")):
            ada.press(*keys)
            ada.shows(answer, "#consent")
        assert ada.page.evaluate("document.activeElement.id") == "note"
        ada.press("Escape")
        assert ada.page.evaluate("document.activeElement.id") == "item"
        ada.press("g", "Escape", "?")
        expect(ada.page.locator("#help-dialog")).to_be_visible()
        expect(ada.page.locator("#guidelines")).to_be_hidden()
        ada.press("Escape", "Digit1", "Enter")
        ada.shows("1 of ", "#counts")


def test_a_screen_reader_hears_what_happens(browser: Any, tmp_path: Path) -> None:
    """Order, progress and what is missing are said; controls have names, and everything is reached with Tab."""
    with person(browser, tmp_path, [ranking(), *pairs(1)]) as ada:
        ada.press("a", "=", "b")
        ada.shows("A = B", "#live")
        expect(ada.page.locator("#live")).to_have_attribute("aria-live", "polite")
        ada.press("Enter")
        ada.shows("Rank C, D", "#live")
        card = ada.page.get_by_role("group", name="Answer A, rank 1")
        expect(card).to_be_visible()
        expect(ada.page.get_by_role("button", name="B, rank 1")).to_be_visible()
        card.focus()
        ada.press("ArrowDown")
        ada.shows("B > A", "#live")
        ada.press("c", "d", "Enter")
        ada.shows("Item 2", "#live")
        reached = set()
        for _ in range(30):
            ada.press("Tab")
            reached.add(ada.page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
        assert {"guidelines-button", "help-button", "consent-button", "scale", "skip", "flag", "note"} <= reached
        assert ada.page.get_by_role("radio", name="A is significantly better").count() == 1
