"""A Chromium of the system, for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps.label.chromium import CHROMIUM
from tests.patience import PATIENCE


@pytest.fixture(scope="module")  # a browser that stays open stops other modules from starting one
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        playwright.expect.set_options(timeout=PATIENCE * 1000)
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
