"""The table of docs/silent-bugs.md, from the marks of the tests that hold it.

A test is marked `@pytest.mark.silent_bug(KIND, ELSEWHERE, HERE, *REPORTS)`: texts, and reports as
`owner/name#number`. A test of several kinds has several marks. The page shows the faults that were
reported for one of `TOOLKITS`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent / "tests"
HEADER = ("what goes wrong elsewhere", "what alignkit does, with its test")
TOOLKITS = (
    "huggingface/trl",
    "verl-project/verl",
    "OpenRLHF/OpenRLHF",
)


class Fault(NamedTuple):
    """One mark of a test."""

    kind: str
    elsewhere: str
    here: str
    reports: tuple[str, ...]
    test: str


def faults() -> list[Fault]:
    """Those of all tests, sorted by kind, in the order of the tests."""
    rows = [row for path in sorted(TESTS.rglob("test_*.py")) for row in _marked(path)]
    return sorted(rows, key=lambda row: row.kind.casefold())


def lines() -> list[tuple[str, str]]:
    """A line per fault that was reported for one of `TOOLKITS`, with those reports."""
    found = []
    for row in faults():
        reports = [report for report in row.reports if report.partition("#")[0] in TOOLKITS]
        if reports:
            links = ", ".join(map(_link, reports))
            found.append((f"{row.elsewhere} {links}", f"[{row.here}](../{row.test})"))
    return found


def _marked(path: Path) -> Iterator[Fault]:
    text = path.read_text(encoding="utf-8")
    if "mark.silent_bug(" not in text:
        return
    file = path.relative_to(TESTS.parent).as_posix()
    for test in ast.parse(text).body:
        for mark in getattr(test, "decorator_list", ()):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.silent_bug":
                texts = [ast.literal_eval(argument) for argument in mark.args]
                yield Fault(*texts[:3], reports=tuple(texts[3:]), test=file)


def _link(report: str) -> str:
    repository, _, number = report.partition("#")
    return f"[{repository.partition('/')[2]}#{number}](https://github.com/{repository}/issues/{number})"
