"""People at the page in Chromium, for tests. They need playwright and a Chromium of the system."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from tests.patience import PATIENCE
from tests.people.pages import application, served
from tests.stores import opened

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PACKAGES = all(find_spec(name) for name in ("playwright", "starlette", "uvicorn"))
needed = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and PACKAGES), reason="no Chromium, or no playwright"),
]


def expect(*what: Any) -> Any:
    from playwright.sync_api import expect

    return expect(*what)


class Person:
    """A page, and what a person sees and does there."""

    def __init__(self, page: Any, store: Store, address: str):
        self.page, self.store, self.address = page, store, address
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on(
            "console",
            lambda message: self.faults.append(message.text) if message.type == "error" else None,
        )
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(address)
        self.settled()

    def settled(self) -> None:
        """Wait until the page shows an item, or that none is left."""
        expect(self.page.locator("#form:not([hidden]), #done:not([hidden])")).to_be_visible()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def prompt(self) -> str:
        return str(self.page.locator("#prompt .text").inner_text())

    def prompt_changes(self, before: str) -> None:
        expect(self.page.locator("#prompt .text")).not_to_have_text(before)

    def shows(self, text: str, where: str = "#prompt") -> None:
        expect(self.page.locator(where)).to_contain_text(text)

    def finished(self) -> None:
        self.page.wait_for_selector("#done:not([hidden])")

    def labels(self) -> list[Any]:
        return [event for event in self.store.events() if event.kind == "label"]


@contextmanager
def person(
    browser: Any,
    tmp_path: Path,
    items: list[Item],
    *,
    width: int = 1280,
    before: Callable[[Any], None] | None = None,
    **more: Any,
) -> Iterator[Person]:
    """Ada at a page with these items. before: called with the browser's context; more: of
    `application`.
    """
    store = opened(tmp_path, *items)
    app, sessions = application(store, **more)
    with served(app) as port:
        context = browser.new_context(viewport={"width": width, "height": 800})
        if before is not None:
            before(context)
        ada = Person(
            context.new_page(), store, f"http://127.0.0.1:{port}/?token={sessions['ada'].token}"
        )
        yield ada
        context.close()
        assert ada.faults == []
    store.close()


def send(ada: Person, code: str, key: str, **more: Any) -> None:
    ada.page.evaluate(
        "init => document.body.dispatchEvent(new KeyboardEvent('keydown', {bubbles: true, "
        "cancelable: true, ...init}))",
        {"code": code, "key": key, **more},
    )


Visit = Callable[..., AbstractContextManager[Person]]


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Visit:
    return partial(person, browser, tmp_path)
