"""Where the cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.io.text import cache_folder


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
