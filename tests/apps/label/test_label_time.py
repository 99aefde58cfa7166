"""Time in Chromium, with a clock that the test moves: work, idleness, breaks, pace, and reading that was too fast."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.apps.label.chromium import Person, expect, needed, person
from tests.apps.label.pages import pairs
from tests.stores import pair

pytestmark = needed

LONG = [pair(f"prompt {n}", "good " * 300, "poor " * 300) for n in range(6)]  # 3,000 characters: 50 s at least


def stopped(context: Any) -> None:
    context.clock.install()


def work(ada: Person, minutes: float) -> None:
    """Minutes with an action in each."""
    for _ in range(round(minutes)):
        ada.page.clock.fast_forward(60_000)
        ada.press("g")


def label(ada: Person) -> None:
    before = ada.prompt()
    ada.press("Digit1", "Enter")
    ada.page.clock.fast_forward(1)
    ada.prompt_changes(before)


def test_time_counts_until_nobody_acts_for_five_minutes(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, LONG, before=stopped) as ada:
        work(ada, 4)
        ada.shows("4 min of work", "#session")
        ada.page.clock.fast_forward(3 * 3600_000)
        ada.shows("9 min of work, paused", "#session")
        ada.press("g")
        ada.page.reload()
        ada.settled()
        ada.shows("9 min of work", "#session")
        label(ada)
        seconds = ada.labels()[0].seconds
        assert seconds is not None and seconds < 600


def test_a_break_is_recommended_after_fifty_minutes(browser: Any, tmp_path: Path) -> None:
    """Of work without a break: five minutes without an action are one."""
    with person(browser, tmp_path, LONG, before=stopped) as ada:
        work(ada, 45)
        ada.page.clock.fast_forward(6 * 60_000)
        ada.press("g")
        work(ada, 20)
        label(ada)
        expect(ada.page.locator("#notice")).to_be_hidden()
        work(ada, 32)
        label(ada)
        ada.shows("50 minutes. A break", "#notice")
        label(ada)
        expect(ada.page.locator("#notice")).to_be_hidden()


def test_reading_too_fast_is_said_and_not_forbidden(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, LONG, before=stopped) as ada:
        ada.press("Digit1")
        ada.shows("That was fast", "#missing")
        ada.page.clock.fast_forward(60_000)
        expect(ada.page.locator("#missing")).to_be_empty()
        label(ada)
        expect(ada.page.locator("#missing")).to_have_text("Choose 1 to 8")
        label(ada)
        ada.shows("characters; undo if it was too fast", "#missing")
        assert len(ada.labels()) == 2


def test_pace_and_what_is_left(browser: Any, tmp_path: Path) -> None:
    with person(browser, tmp_path, LONG, before=stopped) as ada:
        ada.shows("0 of 6 done", "#counts")
        expect(ada.page.locator("#pace")).to_be_empty()
        for number in (1, 2):
            ada.page.clock.fast_forward(60_000)
            label(ada)
            ada.shows(f"{number} of 6 done", "#counts")
        # The time of a busy machine counts, too.
        expect(ada.page.locator("#pace")).to_have_text(re.compile(r"^6\d s each · about [45] min left · $"))
        assert ada.page.locator("#bar").get_attribute("value") == "2"


def test_a_label_has_its_time(browser: Any, tmp_path: Path) -> None:
    """Also if the page was reloaded, and without the time while it was hidden."""
    with person(browser, tmp_path, pairs(2), before=stopped) as ada:
        ada.page.clock.fast_forward(20_000)
        with ada.page.expect_response("**/api/label/draft"):
            ada.press("Digit1")
            ada.page.clock.fast_forward(1000)
        ada.page.reload()
        ada.settled()
        ada.page.clock.fast_forward(10_000)
        label(ada)
        seconds = ada.labels()[0].seconds
        assert seconds is not None and 30 <= seconds < 40
