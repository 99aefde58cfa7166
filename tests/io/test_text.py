"""Where the cache is, and one form of texts that are typed in several ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.evaluation.answers import normalized
from alignkit.io.text import cache_folder, typed
from tests.typings import ASKED, TYPINGS


@pytest.mark.parametrize(
    ("own", "user", "found"),
    [("/own", "/user", "/own"), ("", "/user", "/user/alignkit"), ("", "", "/me/.cache/alignkit")],
)
def test_the_cache(own: str, user: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("ALIGNKIT_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", user)
    if not user:
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path(found)


@pytest.mark.parametrize("text", TYPINGS)
def test_texts_that_say_the_same_are_equal_however_they_are_typed(text: str) -> None:
    assert text != ASKED and normalized(text) == normalized(ASKED)


def test_what_says_something_else_stays_apart() -> None:
    texts = ["AT&T", "AT;T", "a & b", "a b", "x < 2", "x > 2", "-1", "1", "it's", "its", "#39;"]
    assert len({normalized(text) for text in texts}) == len(texts)
    assert typed("It’s&nbsp;“A”") == 'It\'s "A"'
