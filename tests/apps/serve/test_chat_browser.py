"""The page of `alignkit chat --page` in Chromium: what a person does. Needs playwright and a system's Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alignkit_plugins.people.effective_labels import labeled
from tests.apps.label.chromium import needed
from tests.apps.label.injections import INJECTIONS
from tests.apps.label.pages import served
from tests.apps.serve.chats import NAMES, Chat, chat
from tests.patience import PATIENCE

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = needed


class Person:
    """A tab, and what a person sees and does in it."""

    def __init__(self, page: Any, chat: Chat, address: str):
        self.page, self.chat, self.address = page, chat, address
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(address)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def asks(self, text: str, waits: bool = True) -> None:
        """Type a question, send it, and wait for the answers."""
        self.page.locator("#question").fill(text)
        self.page.locator("#question").focus()
        self.press("Enter")
        if waits:
            self.shows("", "#status", exact=True)

    def shows(self, text: str, where: str = "#log", exact: bool = False) -> None:
        found = playwright.expect(self.page.locator(where))
        if exact:
            found.to_have_text(text)
        else:
            found.to_contain_text(text)

    def answers(self) -> list[str]:
        return [str(text) for text in self.page.locator(".exchange:last-child .text").all_inner_texts()]

    def focus(self) -> str:
        return str(self.page.evaluate("document.activeElement.id"))

    def spoken(self, text: str) -> None:
        playwright.expect(self.page.locator("#live")).to_contain_text(text)

    def labels(self) -> list[Any]:
        assert self.chat.collection
        return [(e.stored.item.task, e.final) for e in labeled(self.chat.collection.store()) if e.final]


@contextmanager
def person(browser: Any, path: Path | None = None, agrees: bool = True, **more: Any) -> Iterator[Person]:
    with ExitStack() as stack:
        page = stack.enter_context(chat(path, **more))
        port = stack.enter_context(served(page.app))
        context = stack.enter_context(browser.new_context(viewport={"width": 1280, "height": 800}))
        ada = Person(context.new_page(), page, f"http://127.0.0.1:{port}/?token={page.sessions.links['ada']}")
        if path is not None and agrees:
            ada.page.locator("#agree").click()
            ada.shows("yes", "#consent")
        yield ada
        assert ada.faults == []


def test_one_by_keyboard(browser: Any, tmp_path: Path) -> None:
    """Ask, rate, edit, ask again: what is kept is what was seen, and nothing but keys is needed."""
    with person(browser, tmp_path / "a.feedback", names=NAMES[:1], rewards=True) as ada:
        assert "token" not in ada.page.url
        ada.press("Enter")
        assert ada.focus() == "question"
        ada.page.keyboard.type("1 good question")
        ada.press("Shift+Enter")
        ada.page.keyboard.type("2 e")
        ada.press("Enter")
        ada.spoken("The model: sft heard 1: 1 good question")
        assert ada.answers() == ["sft heard 1: 1 good question\n2 e"] and ada.focus() == "log"
        ada.shows("length 3.2")
        ada.press("Digit1", "Digit2")
        ada.spoken("Bad")
        ada.press("Alt+e")
        ada.page.locator("#edited").fill("better")
        ada.press("Control+Enter")
        ada.spoken("Edited")
        assert ada.answers() == ["better"]
        ada.shows("edited", ".remark", exact=True)  # without the reward of the text before
        ada.press("Enter")
        ada.page.keyboard.type("next")
        ada.press("Enter")
        ada.spoken("The model: sft heard 3: next")
        assert ada.labels() == [("thumb", {"good": False}), ("demonstration", {"text": "better"})]
        assert ada.chat.collection
        prompt = ada.chat.collection.store().items()[-1].item.prompt
        assert [turn["content"] for turn in prompt] == ["1 good question\n2 e", "better", "next"]
        ada.press("Digit1", "Digit1")  # a second time takes it back
        ada.spoken("Taken back")
        playwright.expect(ada.page.locator("#log [aria-pressed=true]")).to_have_count(1)


def test_no_key_of_a_question_is_lost_or_a_shortcut(browser: Any, tmp_path: Path) -> None:
    """The text box has the focus on load. After answers, whose digits choose, other keys begin the next question."""
    with person(browser, tmp_path / "a.feedback") as ada:
        assert ada.focus() == "question"
        ada.page.keyboard.type("No new question, really?")
        assert ada.page.locator("#question").input_value() == "No new question, really?"
        ada.press("Enter")
        ada.spoken("A: sft heard 1: No new")
        assert ada.focus() == "log"
        ada.press("Digit2")
        ada.spoken("A is better")
        ada.page.keyboard.type("Never mind, eh? 2 rivers")
        assert ada.page.locator("#question").input_value() == "Never mind, eh? 2 rivers"


def test_an_example_is_asked_by_a_click(browser: Any) -> None:
    with person(browser, names=NAMES[:1]) as ada:
        ada.page.locator("#empty button").first.click()
        ada.spoken("heard 1: What should I pack for a camping trip?")


def test_two_with_one_key(browser: Any, tmp_path: Path) -> None:
    """Both continue from the answer that was chosen; a choice can be changed until the next question."""
    with person(browser, tmp_path / "a.feedback") as ada:
        ada.shows(f"{NAMES[0]} and {NAMES[1]}", "header")
        ada.asks("first")
        ada.spoken("A: sft heard 1: first B: dpo heard 1: first")
        ada.press("Digit1", "Digit7")
        ada.spoken("B is better")
        ada.asks("second")
        assert ada.answers() == ["sft heard 3: second", "dpo heard 3: second"]
        assert ada.labels() == [("pair", {"better": 1, "margin": "better"})]
        assert ada.chat.collection
        items = ada.chat.collection.store().items()
        assert [stored.item.task for stored in items] == ["pair", "pair"]
        assert items[1].item.prompt[1]["content"] == "dpo heard 1: first"
        ada.asks("third, without a choice")
        assert ada.answers()[0] == "sft heard 5: third, without a choice"
        ada.press("Digit1")
        ada.shows("different conversations", "#offline")
        ada.faults.clear()  # the browser reports the refusal
        ada.page.locator(".exchange:last-child [data-act=true0]").click()
        ada.spoken("Good")
        assert ("thumb", {"good": True}) in ada.labels()


def test_blind(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path / "a.feedback", blind=True, rewards=True, says=lambda n: lambda m, k: n[-3:]) as ada:
        seen = set()
        for number in range(8):
            ada.asks(f"q{number}")
            headings = ada.page.locator(".exchange:last-child h2")
            assert headings.all_inner_texts() == ["A", "B"]
            assert "length" not in ada.page.locator(".exchange:last-child").inner_text()
            left = ada.answers()[0]
            seen.add(left)
            ada.press("Digit3")
            ada.shows(f"secret-{left}", ".exchange:last-child article:first-child h2")
            ada.shows("length 0.3", ".exchange:last-child article:first-child")
        assert seen == {"sft", "dpo"} and len(ada.labels()) == 8


def test_no_keeps_nothing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.feedback"
    with person(browser, path, agrees=False) as ada:
        assert ada.focus() == "consent-title"  # so that Enter is no yes
        ada.press("Enter")
        assert ada.page.locator("#consent-dialog").is_visible()
        ada.press("n")
        assert not ada.page.locator("#consent-dialog").is_visible()
        ada.asks("secret")
        assert ada.page.locator("[data-act=true0]").count() == 0
        assert ada.focus() == "question"  # there is nothing to decide
        ada.press("Escape", "Digit2")
        ada.spoken("A is better")
        assert not path.exists()
        ada.page.reload()
        assert not ada.page.locator("#consent-dialog").is_visible()  # it is asked once
        ada.page.locator("#consent-button").click()
        ada.press("y")
        ada.shows("yes", "#consent")
        ada.asks("not secret")
        playwright.expect(ada.page.locator("[data-act=true0]")).to_have_count(1)


def test_a_slow_answer_is_seen_while_it_is_written_and_can_be_stopped(browser: Any) -> None:
    with person(browser, names=NAMES[:1], says=lambda n: lambda m, k: "one two three " * 50) as ada:
        policy = ada.chat.policies[0]
        policy.gate.clear()
        ada.asks("go", waits=False)
        ada.shows("Answering", "#status")
        assert ada.page.locator("#send").is_disabled()
        assert policy.waits.wait(PATIENCE)
        ada.press("Escape", "Escape")
        ada.shows("", "#status", exact=True)
        assert ada.page.locator("#question").input_value() == "go"  # nothing was written, so it was not asked
        policy.holds = policy.words + 2
        ada.asks("go", waits=False)
        ada.shows("one two", ".exchange .text", exact=True)
        ada.press("Escape")
        ada.shows("stopped", ".exchange .remark")
        ada.shows("", "#status", exact=True)
        policy.gate.set()
        ada.asks("on")
        assert ada.page.locator(".exchange").count() == 2 and ada.answers()[0].startswith("one two three one")


def test_two_tabs_have_conversations_of_their_own(browser: Any) -> None:
    with person(browser, names=NAMES[:1]) as ada:
        other = Person(ada.page.context.new_page(), ada.chat, ada.address)
        ada.asks("here")
        other.asks("there")
        ada.asks("here again")
        assert ada.answers() == ["sft heard 3: here again"] and other.answers() == ["sft heard 1: there"]
        other.press("Alt+n")
        assert other.page.locator(".exchange").count() == 0 and ada.page.locator(".exchange").count() == 2


def test_the_conversation_outlives_a_reload_and_another_server(browser: Any, tmp_path: Path) -> None:
    """What was said while the server was gone is kept when it is back."""
    path = tmp_path / "a.feedback"
    with browser.new_context() as context, chat(path) as first:
        with served(first.app) as port:
            ada = Person(context.new_page(), first, f"http://127.0.0.1:{port}/?token={first.sessions.links['ada']}")
            ada.page.locator("#agree").click()
            ada.shows("yes", "#consent")
            ada.asks("before")
            ada.page.reload()
            assert ada.answers() == ["sft heard 1: before", "dpo heard 1: before"]
        ada.press("Escape", "Digit2")  # a page that is loaded has the cursor in the question
        ada.shows("1 label waits", "#offline")
        ada.asks("lost")
        ada.shows("The server does not answer", "#offline")
        assert ada.page.locator("#question").input_value() == "lost" and ada.page.locator(".exchange").count() == 1
        assert ada.labels() == []
        assert first.collection
        first.collection.close()
        with chat(path) as second, served(second.app, port):
            ada.asks("lost")
            ada.shows("open the address that it printed", "#offline")
            ada.page.goto(f"http://127.0.0.1:{port}/?token={second.sessions.links['ada']}")
            assert ada.answers() == ["sft heard 1: before", "dpo heard 1: before"]
            ada.asks("after")
            assert ada.answers() == ["sft heard 3: after", "dpo heard 3: after"]
            ada.chat = second
            assert ada.labels() == [("pair", {"better": 0, "margin": "better"})]


def test_faults_of_a_model(browser: Any) -> None:
    with person(browser) as ada:
        ada.asks("explode")
        ada.shows("unexpected RuntimeError: the weights of secret-dpo melted")
        ada.asks("fine?")
        assert ada.answers() == ["sft heard 1: fine?", "dpo heard 1: fine?"]
        ada.asks("x" * 60_000)
        ada.shows("reads at most 1023. Begin a new conversation.")
        ada.press("Alt+q")
        assert len(ada.page.locator("#question").input_value()) == 60_000
        ada.page.locator("#question").evaluate("box => box.value = 'y'.repeat(1100000)")
        ada.press("Enter")
        ada.shows("more than 1,048,576 bytes", "#offline")
        ada.asks("short")
        assert ada.answers()[0] == "sft heard 3: short"
        ada.faults.clear()  # the browser reports the request that was refused


def test_answer_again_and_another_question(browser: Any) -> None:
    count = iter(range(100))
    with person(browser, names=NAMES[:1], says=lambda n: lambda m, k: f"answer {next(count)}") as ada:
        ada.asks("one")
        ada.press("Alt+r")
        ada.shows("answer 1")
        ada.shows("", "#status", exact=True)
        ada.press("Alt+q")
        assert ada.page.locator("#question").input_value() == "one" and ada.page.locator(".exchange").count() == 0
        ada.page.locator("#help-button").click()
        ada.shows("new conversation", "#help-dialog")
        ada.press("Escape")


def test_markdown_and_texts_as_written(browser: Any) -> None:
    with person(browser, names=NAMES[:1], says=lambda n: lambda m, k: "- one\n- **two**") as ada:
        ada.asks("list")
        assert ada.page.locator(".answer li strong").all_inner_texts() == ["two"]
        ada.press("Alt+m")
        ada.spoken("Texts as written")
        assert ada.answers() == ["- one\n- **two**"]
        ada.page.reload()
        assert ada.answers() == ["- one\n- **two**"]
        ada.press("Escape")
        ada.page.locator("#markdown-button").click()
        assert ada.page.locator(".answer li").count() == 2
        ada.press("Alt+e")  # edits what was written
        assert ada.page.locator("#edited").input_value() == "- one\n- **two**"
        ada.press("Escape")


def test_injections_do_nothing(browser: Any, tmp_path: Path) -> None:
    """As questions, answers, system message and edits: none runs, and none loads a thing."""
    whole = "\n".join(INJECTIONS)
    with person(browser, tmp_path / "a.feedback", says=lambda n: lambda m, k: f"{n}{whole}", system=whole) as ada:
        loaded: list[str] = []
        ada.page.on("request", lambda request: loaded.append(request.url))
        ada.asks(whole)
        ada.press("Digit1", "Alt+e")
        ada.page.locator("#edited").fill(f"{whole} edited")
        ada.press("Control+Enter")
        ada.spoken("Edited")
        ada.page.reload()
        ada.shows("onerror")
        ada.page.wait_for_load_state("networkidle")
        assert ada.page.evaluate("window.hit") is None
        assert {urlsplit(url).netloc for url in loaded} == {urlsplit(ada.address).netloc}
        assert ada.page.locator("main img, main iframe, main object, main script, main svg, main style").count() == 0
        assert dict(ada.labels())["demonstration"] == {"text": f"{whole} edited"}


# Buttons whose text is cut off or leaves the window, and the contrast of text and background of each pressed button.
FAULTY = """() => [...document.querySelectorAll("button")].filter((one) => one.checkVisibility()).filter((one) => {
  const { left, right } = one.getBoundingClientRect();
  const parts = [...one.children].map((part) => part.getBoundingClientRect()).filter((part) => part.width > 1);
  return one.scrollWidth > one.clientWidth || left < 0 || right > innerWidth
    || parts.some((part) => part.left < left || part.right > right);
}).map((one) => one.textContent)"""
CONTRASTS = """() => [...document.querySelectorAll("#log [aria-pressed=true]")].map((one) => {
  const light = (color) => color.match(/[0-9.]+/g).slice(0, 3)
    .map((part) => part / 255).map((part) => (part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0);
  const { color, backgroundColor } = getComputedStyle(one);
  const [low, high] = [color, backgroundColor].map(light).sort((a, b) => a - b);
  return (high + .05) / (low + .05);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 900, 700, 630, 390])
def test_buttons_are_legible(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    with person(browser, tmp_path / "a.feedback", blind=True) as ada:
        ada.page.emulate_media(color_scheme=scheme)
        ada.page.set_viewport_size({"width": width, "height": 800})
        ada.asks("hello")
        ada.press("Digit2")
        ada.shows("secret-", ".exchange article:first-child h2")
        ada.page.locator("[data-act=true0]").click()
        playwright.expect(ada.page.locator("#log [aria-pressed=true]")).to_have_count(2)
        assert ada.page.evaluate(FAULTY) == []
        contrasts = ada.page.evaluate(CONTRASTS)
        assert len(contrasts) == 2 and min(contrasts) >= 4.5
        assert ada.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def fine(page: Any) -> None:
        found = axe.run(page).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []

    with person(browser, tmp_path / "a.feedback", agrees=False, rewards=True) as ada:
        ada.page.emulate_media(color_scheme=scheme)
        fine(ada.page)
        ada.page.locator("#agree").click()
        ada.shows("yes", "#consent")
        fine(ada.page)
        ada.asks("explode")
        fine(ada.page)
        ada.asks("hello")
        ada.press("Digit2")
        ada.spoken("A is better")
        fine(ada.page)
        ada.page.locator("#system-box summary").click()
        ada.page.locator("[data-act=edit0]").click()
        fine(ada.page)
        ada.press("Escape")
        ada.page.set_viewport_size({"width": 390, "height": 800})
        fine(ada.page)
        assert ada.page.evaluate("document.documentElement.scrollWidth") <= 390
