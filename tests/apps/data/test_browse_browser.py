"""The page of `alignkit data browse` in Chromium: what a person does, by keyboard."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from planted_rows import PLANTED, plant

from alignkit.cli import main
from alignkit.plugins import load_plugins
from alignkit_apps.data.browse import BrowseApi, Marks
from alignkit_apps.data.browse_page import make_page
from alignkit_apps.data.corpus import corpus_of, entry
from alignkit_apps.web.guard import Sessions
from tests.apps.label.chromium import expect, needed
from tests.apps.label.injections import INJECTIONS
from tests.apps.label.pages import served

pytestmark = needed


def test_search_filter_mark_and_clean(browser: Any, tmp_path: Path) -> None:
    """Marks outlive a reload, `clean` takes them, and nothing that a row says runs."""
    train, _ = plant(tmp_path)
    evil = {
        "prompt": "Unlike the others",
        "completion": "".join(INJECTIONS),
        "<b>x</b>": "<script>window.hit=1</script>",
    }
    rows = train.read_text(encoding="utf-8").splitlines()
    train.write_text("\n".join([json.dumps(evil), *rows]) + "\n", encoding="utf-8")
    load_plugins()
    options = entry(str(train))
    corpus = corpus_of(options.data)
    api = BrowseApi(corpus, Marks(tmp_path / "bad.jsonl", corpus.files))
    sessions = Sessions(["ada"])
    faults: list[str] = []
    with (
        served(make_page(api, sessions)) as port,
        browser.new_context(viewport={"width": 1280, "height": 800}) as context,
    ):
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/?token={sessions.links['ada']}")
        expect(page.locator("#where")).to_have_text("train.jsonl:1" if Path.cwd() == tmp_path else f"{train}:1")
        expect(page.locator("#looking")).to_be_visible()
        looking = threading.Thread(target=api.look, args=(options,))
        looking.start()
        expect(page.locator("#flag option[value=near]")).to_have_text(f"near ({PLANTED['near']})")
        looking.join()
        page.keyboard.press("/")
        page.keyboard.type("unlike THE")
        expect(page.locator("#count")).to_have_text("1–1 of 1")
        page.keyboard.press("Escape")
        page.keyboard.press("m")
        assert (
            page.evaluate("window.hit") is None and page.locator("#item script, #item img, #item iframe").count() == 0
        )
        page.locator("#clear").click()
        page.locator("#flag").select_option("markdown")
        expect(page.locator("#list button")).to_have_count(PLANTED["markdown"])
        expect(page.locator("#fault")).to_contain_text("has a block of code that does not end")
        page.locator("#item").focus()
        page.keyboard.press("j")
        expect(page.locator("#list li:nth-child(2) button")).to_have_attribute("aria-current", "true")
        page.keyboard.press("r")
        page.keyboard.type("odd")
        page.keyboard.press("Enter")
        expect(page.locator("#mark")).to_have_attribute("aria-pressed", "true")
        where = page.locator("#where").inner_text()
        page.reload()
        expect(page.locator("#where")).to_have_text(where)
        expect(page.locator("#mark")).to_have_attribute("aria-pressed", "true")
        assert page.locator("#reason").input_value() == "odd" and page.locator("#flag").input_value() == "markdown"
        page.locator("#item").focus()
        page.keyboard.press("k")
        expect(page.locator("#mark")).to_have_attribute("aria-pressed", "false")
        page.keyboard.press("x")
        expect(page.locator("#mark")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("x")
        expect(page.locator("#mark")).to_have_attribute("aria-pressed", "false")
    assert faults == []
    out = tmp_path / "clean.jsonl"
    assert main(["data", "clean", str(train), "--out", str(out), f"marks={tmp_path / 'bad.jsonl'}"]) == 0
    removed = [json.loads(line) for line in (tmp_path / "clean.removed.jsonl").read_text(encoding="utf-8").splitlines()]
    (odd,) = (row for row in removed if row["rule"] == "marks")
    assert (odd["reason"], where.endswith(f":{odd['row']}")) == ("odd", True)


def test_the_page_names_its_parts(browser: Any, tmp_path: Path) -> None:
    """Everything that can be used has a name, and texts stand out from what is behind them, in light and in dark."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "completion": "Yes.", "topic": "x"}\n', encoding="utf-8")
    load_plugins()
    options = entry(str(tmp_path / "a.jsonl"))
    corpus, sessions = corpus_of(options.data), Sessions(["ada"])
    api = BrowseApi(corpus, Marks(tmp_path / "bad.jsonl", corpus.files))
    api.look(options)
    with served(make_page(api, sessions)) as port:
        for scheme in ("light", "dark"):
            with browser.new_context(color_scheme=scheme, viewport={"width": 380, "height": 800}) as context:
                page = context.new_page()
                page.goto(f"http://127.0.0.1:{port}/?token={sessions.links['ada']}")
                expect(page.locator("#bar")).to_be_visible()
                assert page.evaluate(UNNAMED) == [] and page.evaluate(FAINT) == []
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


UNNAMED = """[...document.querySelectorAll("button, input, select")].filter((one) => one.checkVisibility() &&
  !(one.labels?.[0]?.textContent ?? one.textContent).trim() && !one.getAttribute("aria-label")).map((one) => one.id)"""
# Texts with less contrast than 4.5 to 1 (WCAG AA).
FAINT = """(() => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => rgb(color).slice(0, 3)
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => { for (; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if ((rgb(color)[3] ?? 1) > 0.9) return color; } return "rgb(255,255,255)"; };
  return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.disabled &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).filter((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5; }).map((one) => one.outerHTML.slice(0, 80));
})()"""
