"""The page of `alignkit serve` in Chromium: a person talks, agrees and rates."""

from __future__ import annotations

from typing import Any

from alignkit_plugins.people.votes import labeled
from tests.chromium import expect, needed
from tests.patience import PATIENCE
from tests.serving.conftest import Server

pytestmark = needed


def test_a_talk_with_consent_and_a_thumb(browser: Any, server: Server) -> None:
    page = browser.new_context().new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda message: faults.append(message.text) if message.type == "error" else None
    )
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"http://127.0.0.1:{server.port}/#max=8&system=Be+kind")
    expect(page.locator("#words")).to_contain_text("models may be trained on them")
    page.fill("#name", "eve")
    page.click("#terms button[value=yes]")
    expect(page.locator("#note")).to_have_text("answers are kept from now on")
    page.fill("#text", "<b>bread</b> \u202eis good")
    page.press("#text", "Enter")
    page.click("article.assistant button:has-text('good')")
    expect(page.locator("#note")).to_have_text("kept")
    expect(page.locator("article.user p")).to_have_text("<b>bread</b> ⟦U+202E⟧is good")
    page.select_option("#model", "run-base")
    page.click("#retry")
    expect(page.locator("article.assistant small").first).to_have_text("run-base")
    own = [entry for entry in labeled(server.collection.store()) if entry.item.author == "eve"]
    assert (
        own[0].labels == [{"good": True}] and own[0].stored.item.prompt[0]["content"] == "Be kind"
    )
    page.click("#reset")
    expect(page.locator("article")).to_have_count(0)
    assert faults == []
