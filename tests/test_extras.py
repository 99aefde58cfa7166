"""Extras, and the command that installs one."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

from alignkit.errors import RunFailed
from alignkit_plugins import extras


def test_a_missing_module_is_named_with_who_needs_it() -> None:
    extras.check_extra("alignkit serve", "serve", "json", "re")
    with pytest.raises(
        RunFailed, match=r"needs the package no_such\nhelp: .* install 'alignkit\[serve\]'"
    ):
        extras.check_extra("alignkit serve", "serve", "json", "no_such")


def test_every_extra_that_is_named_exists() -> None:
    calls = re.compile(r'check_extra\((?:"[^"]*"|\w+), "([a-z-]+)"')
    files = Path(__file__).parents[1].joinpath("plugins").rglob("*.py")
    named = {extra for file in files for extra in calls.findall(file.read_text(encoding="utf-8"))}
    assert len(named) >= 7 and named <= set(metadata("alignkit").get_all("Provides-Extra") or ())
