"""The page in Chromium: what a person does, by keyboard. Needs playwright and a Chromium of the
system.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from alignkit_plugins.people.items import Item
from tests.chromium import Visit, expect, needed, send, visit
from tests.people.injections import INJECTIONS
from tests.people.pages import pairs
from tests.stores import event, pair, ranking, review, reviewed, several, side, turn

__all__ = ["visit"]

pytestmark = needed


def test_twenty_pairs_by_keyboard(visit: Visit) -> None:
    """One key says side and degree, Enter submits, and what is stored is what was seen."""
    with visit(pairs(20)) as ada:
        degrees = ["significantly", "better", "slightly", "unsure"]
        seen, stored = {}, {}
        for number in range(20):
            prompt = ada.prompt()
            key = number % 8
            said = side("A", degrees[key]) if key < 4 else side("B", degrees[7 - key])
            seen[prompt] = ada.page.locator(".answer .text").first.inner_text(), said
            ada.press(f"Digit{key + 1}", "Enter")
            if number < 19:
                ada.prompt_changes(prompt)
        ada.finished()
        for event in ada.labels():
            item = ada.store.item(str(event.item)).item
            stored[item.prompt[0]["content"]] = item.responses[event.order[0]], event.payload
            assert event.seconds is not None and event.seconds > 0
        assert stored == seen
        assert "token" not in ada.page.url


def test_undo_reopens_the_last_item_as_it_was(visit: Visit) -> None:
    with visit(pairs(3)) as ada:
        first = ada.prompt()
        ada.press("n")
        ada.page.keyboard.type("why")
        ada.press("Escape", "Digit3", "Enter")
        ada.prompt_changes(first)
        ada.press("u")
        ada.shows(first)
        assert ada.page.locator("input[name=scale]:checked").get_attribute("value") == "2"
        assert ada.page.locator("#note").input_value() == "why"
        ada.press("Digit6", "Enter")
        ada.prompt_changes(first)
        kinds = [event.kind for event in ada.store.events()]
        assert kinds == ["label", "undo", "label"]
        ada.press("Control+z")
        ada.shows(first)


def test_keys_that_are_not_for_the_page(visit: Visit) -> None:
    """Text boxes, modifiers, held keys and input methods keep their keys."""
    with visit(pairs(2)) as ada:
        checked = ada.page.locator("input[name=scale]:checked")
        ada.press("n")
        ada.page.keyboard.type("12 u s f")
        assert checked.count() == 0 and ada.page.locator("#note").input_value() == "12 u s f"
        ada.press("Escape")
        for modifier in ("ctrlKey", "altKey", "metaKey"):
            send(ada, "Digit2", "2", **{modifier: True})
        send(ada, "Digit2", "2", repeat=True)
        send(ada, "Digit2", "Process", isComposing=True)
        assert checked.count() == 0
        send(ada, "Digit2", "é")  # a French keyboard
        assert checked.get_attribute("value") == "1"
        send(ada, "Enter", "Enter", repeat=True)
        assert ada.labels() == []


def test_a_label_waits_until_the_server_is_back(visit: Visit) -> None:
    with visit(pairs(3)) as ada:
        prompt = ada.prompt()
        ada.page.route("**/api/label/submit", lambda route: route.abort())
        ada.press("Digit4", "Enter")
        ada.page.wait_for_selector("#offline:not([hidden])")
        assert "1 label waits" in ada.page.locator("#offline").inner_text()
        assert ada.labels() == []
        ada.page.unroute("**/api/label/submit")
        ada.prompt_changes(prompt)
        ada.page.wait_for_selector("#offline", state="hidden")
        assert len(ada.labels()) == 1
        ada.faults.clear()  # the browser reports the request that was aborted


def test_a_ranking_with_a_tie(visit: Visit) -> None:
    with visit([ranking(count=9), ranking("next")]) as ada:
        ada.press(*"ab", "=", "c", "d", "Backspace", *"defgh")
        assert ada.page.locator("#submit").is_disabled()
        ada.press("Enter")
        assert ada.labels() == []
        ada.press("i")
        width = ada.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280
        ada.press("Enter")
        ada.prompt_changes("Rank")
        assert ada.labels()[0].payload["ranks"] == [1, 2, 2, 3, 4, 5, 6, 7, 8]
        ada.page.locator(".answer").nth(3).focus()
        ada.press(*"abcd", "ArrowUp", "ArrowUp", "ArrowUp", "Enter")
        ada.finished()
        assert ada.labels()[1].payload["ranks"] == [2, 3, 4, 1]


def test_safety_demonstrations_and_thumbs(visit: Visit) -> None:
    old = Item("demonstration", (turn("third"),), ("old\u202e text",))
    items = [several("safety", "second", 2), old, several("thumb", "fourth", 1)]
    with visit(items) as ada:
        assert ada.page.evaluate("document.body.classList.contains('covered')")
        ada.press("v", "Digit8", "Enter")
        assert "whether they are safe" in ada.page.locator("#missing").inner_text()
        ada.press("x", "Enter")
        ada.prompt_changes("second")
        submit = ada.page.locator("#submit")
        for key, name in (("e", "Ctrl Enter"), ("Escape", "Enter"), ("e", "Ctrl Enter")):
            ada.press(key)
            assert submit.inner_text() == f"Submit {name}"
        ada.press("Control+End", "!", "Control+Enter")
        ada.prompt_changes("third")
        assert submit.inner_text() == "Submit Enter"
        ada.press("Digit1", "Enter")
        ada.finished()
        assert [event.payload for event in ada.labels()] == [
            side("B", "significantly", safety="both_unsafe"),
            {"text": "old\u202e text!"},
            {"good": True},
        ]


def test_a_review_by_keyboard(visit: Visit) -> None:
    """Flags and scores go to the marked answer, then letters rank; a draft and undo bring all of it
    back.
    """
    with visit([review(), review("next", 9)], width=390) as ada:
        ada.shows("Answer A", ".marked h2")
        ada.press("o", "w", "w", "7")
        ada.shows("Answer B", ".marked h2")
        ada.press("t", "k", "1", "4", "ArrowUp", "2")
        ada.shows("Rank A, B, C", "#missing")
        ada.page.wait_for_timeout(600)  # the draft is saved
        ada.page.reload()
        ada.settled()
        ada.press("b", "=", "c", "Enter")  # not complete
        ada.shows("Rank A", "#missing")
        ada.press("a", "Enter")
        ada.shows("next")
        shown = reviewed([2, 1, 1], [7, 2, 4], ["off_task"], ["harmful", "unsuited"])
        assert ada.labels()[0].payload == shown
        ada.press("u")
        ada.shows("Review")
        ada.press("ArrowUp", "t", "Enter")
        ada.shows("next")
        assert ada.labels()[1].payload == shown | {"flags": [["off_task"], ["unsuited"], []]}
        assert ada.page.evaluate("document.documentElement.scrollWidth") <= 390
        ada.page.locator(".scores .group:nth-child(2) .flags button").first.click()  # marks B
        ada.press(*"5" * 8)
        ada.shows("A: flags, then a score", "#missing")


def test_injections_do_nothing(visit: Visit) -> None:
    """120 injections as prompts, answers, guidelines, drafts and notes: none runs, and none loads a
    thing.
    """
    prompt = tuple(turn(text) for text in INJECTIONS)
    nine = [f"{n}" + "\n".join(INJECTIONS) for n in range(9)]
    keys = {
        "pair": ["Digit1"],
        "review": ["Digit1", "Digit1", "a", "b"],
        "demonstration": [],
        "ranking": list("abcd"),
    }
    counts = {"demonstration": 1, "ranking": 4}
    items = [Item(task, prompt, tuple(nine[: counts.get(task, 2)])) for task in keys]
    with visit(items, guidelines="\n\n".join(INJECTIONS)) as ada:
        asked: list[str] = []
        ada.page.on("request", lambda request: asked.append(request.url))
        for number, task in enumerate(keys, 1):
            shown = ada.page.locator("#prompt .text").all_inner_texts()
            assert shown == [text.strip() for text in INJECTIONS]
            ada.press("n")
            ada.page.keyboard.insert_text(INJECTIONS[number])
            ada.press("Escape", "g", "g", *keys[task], "Enter")
            ada.shows(f"{number} of ", "#counts")
        ada.press("u")
        ada.settled()
        ada.page.goto(ada.address.split("/?")[0])
        ada.page.wait_for_load_state("networkidle")
        assert ada.page.locator("#offline").is_hidden()
        assert ada.page.evaluate("window.hit") is None
        assert {urlsplit(url).netloc for url in asked} == {urlsplit(ada.address).netloc}
        loads = "main img, main iframe, main object, main script, aside img, aside script"
        assert ada.page.locator(loads).count() == 0


def test_consent(visit: Visit) -> None:
    with visit(pairs(2)) as ada:
        assert ada.page.locator("#consent-button").is_hidden()
        ada.press("c", "Digit1", "Enter")
        ada.shows("1 of 2", "#counts")
        ada.shows("not decided", "#consent")
        ada.page.locator("#consent-button").click()
        ada.page.locator(".about").first.fill("MSc")
        ada.page.locator("[data-granted=true]").click()
        ada.shows("yes", "#consent")
        ada.press("Digit1", "Enter")
        ada.shows("2 of 2", "#counts")
        ada.shows("yes", "#consent")
        assert [event.kind for event in ada.store.events()] == ["label", "consent", "label"]
        ada.page.reload()
        ada.finished()
        ada.page.locator("#consent-button").click()
        expect(ada.page.locator(".about").first).to_have_value("MSc")


def test_what_others_said(visit: Visit) -> None:
    with visit([ranking(results=True)], width=390) as ada:
        ada.press("o", *"abcd", "Enter")
        ada.finished()
        ada.store.submit(event(ranking(), {"ranks": [1, 2, 2, 1]}, who="bob"))
        ada.store.submit(event(ranking(), {"note": "no good"}, kind="flag", who="cy"))
        ada.press("o")
        ada.shows("0 of 1 votes of others", "#results")
        expect(ada.page.locator("#undo-last")).to_be_disabled()
        _, _, others, notes = ada.page.locator("#results td").all_inner_texts()
        assert sorted(others) == sorted("1 × A = B > C = D, 1 × flagged")
        assert notes == "flagged: no good"
        seen = ada.page.locator("#results td:first-child").inner_text().splitlines()
        assert seen[0] == "Rank" and [line[:10] for line in seen[1:]] == [
            f"{x}: answer " for x in "ABCD"
        ]
        assert ada.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [390, 1440])
def test_the_prompt_is_in_no_box(visit: Visit, width: int) -> None:
    """A long prompt scrolls with the page, so that its end can be read; a short one stays above
    long answers.
    """
    long, last = "read this. " * 800, "And which is right?"
    items = [pair(long + last), pair("short", long, long + "end")]
    inside = (
        "prompt => [prompt.scrollHeight - prompt.clientHeight, getComputedStyle(prompt).overflowY]"
    )
    end = "scrollTo(0, 1e6)"  # the key scrolls for a while, and the next item may stop that
    with visit(items, width=width) as ada:
        prompt = ada.page.locator("#prompt")
        assert prompt.evaluate(inside) == [0, "visible"]
        ada.page.evaluate(end)
        expect(prompt).not_to_be_in_viewport(ratio=0.9)
        ada.press("Digit1", "Enter")
        ada.shows("short")
        ada.page.evaluate(end)
        if width > 860:
            expect(prompt).to_be_in_viewport(ratio=1)
        else:
            expect(prompt).not_to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit: Visit, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    keys = {
        "pair": ["Digit1"],
        "ranking": list("abcd"),
        "review": [*"444abc"],
        "thumb": ["Digit2"],
        "demonstration": ["e", "x", "Escape"],
        "safety": ["Digit1", "x"],
    }
    marked = pair("# *Which?*", "|a|b|\n|-|-|\n|`c`|d|", "```py\nx\n```\n\n> 1. $y$")
    counts = {"thumb": 1, "demonstration": 0, "safety": 2}
    more = [several(task, task, count) for task, count in counts.items()]
    items = [marked, ranking(), review(), *more]
    with visit(items) as ada:
        ada.page.emulate_media(color_scheme=scheme)
        for task in keys:
            found = axe.run(ada.page).response["violations"]
            assert [(task, fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
            before = ada.prompt()
            ada.press(*keys[task], "Enter")
            if task != "safety":
                ada.prompt_changes(before)
        ada.finished()
