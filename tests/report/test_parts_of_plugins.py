"""A part of the report for any plugin: on the page and in report.json; one that fails is
named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from made import HOSTILE, make_run

from alignkit import Report, Table, hookimpl
from alignkit.plugins import load_plugins, plugins
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of


class Counts:
    @hookimpl
    def report_parts(self, folder: Path, records: list[Mapping[str, Any]]) -> dict[str, Report]:
        rows = [[record["name"], str(len(record["summary"]))] for record in records]
        text = f"{HOSTILE} of {folder.name}"
        return {
            "Counted": Report([text, Table("", ["stage", "facts"], rows)]),
            "Second": Report(["more"]),
        }


class Silent:
    @hookimpl
    def report_parts(self) -> None:
        return None


class Wrong:
    def __init__(self, told: Any):
        self.told = told

    @hookimpl
    def report_parts(self) -> Any:
        if isinstance(self.told, BaseException):
            raise self.told
        return self.told


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    load_plugins()
    yield
    load_plugins()


def test_parts_are_on_the_page_and_in_json(tmp_path: Path) -> None:
    for number, plugin in enumerate((Counts(), Silent())):
        plugins().manager.register(plugin, f"mine-{number}")
    facts = facts_of(make_run(tmp_path / "run"))
    assert [(part["title"], part["anchor"]) for part in facts["parts"]] == [
        ("Counted", "part-1"),
        ("Second", "part-2"),
    ]
    shown = page(facts)
    assert '<section id="part-1">' in shown and '<a href="#part-2">Second</a>' in shown
    assert "<script>alert" not in shown and "&lt;script&gt;alert" in shown


def facts_of_none(folder: Path) -> Mapping[str, Any]:
    load_plugins()
    return facts_of(folder / "run")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (SystemExit(3), "SystemExit: 3"),
        (["a text"], "AttributeError: 'list' object has no attribute 'items'"),
        ({"A": ["a text"]}, "AttributeError: 'list' object has no attribute 'plain'"),
        ({"A": Report([Table("", ["n"], [[1]])])}, ""),  # type: ignore[list-item]
        (
            {"A": Report([Table("", ["n"], [[object()]])])},
            "TypeError: Object of type object is not JSON serializable",
        ),  # type: ignore[list-item]
    ],
)
def test_a_part_that_fails_is_named_and_others_stay(tmp_path: Path, told: Any, why: str) -> None:
    plugins().manager.register(Wrong(told), "plugin 'theirs'")
    plugins().manager.register(Counts(), "mine")
    facts = facts_of(make_run(tmp_path / "run"))
    assert [part["title"] for part in facts["parts"]] == ["Counted", "Second"]
    (warning,) = [one["text"] for one in facts["warnings"] if "plugin" in one["text"]]
    assert warning.startswith(
        "a part of plugin 'theirs' is left out: report_parts must return an alignkit.Report"
    )
    assert why in warning
