"""The table of docs/silent-bugs.md, from the marks of the tests that hold it.

A test is marked `@pytest.mark.silent_bug(KIND, ELSEWHERE, HERE, *REPORTS)`: texts, and reports as
`owner/name#number`. A test of several kinds has several marks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
HEADER = ("kind", "what goes wrong elsewhere", "what alignkit does", "test")


def lines() -> list[tuple[str, ...]]:
    """A line per mark, sorted by kind, in the order of the tests."""
    rows = [row for path in sorted(TESTS.rglob("test_*.py")) for row in _marked(path)]
    return sorted(rows, key=lambda row: row[0].casefold())


def _marked(path: Path) -> Iterator[tuple[str, ...]]:
    text = path.read_text(encoding="utf-8")
    if "mark.silent_bug(" not in text:
        return
    file = path.relative_to(TESTS.parent).as_posix()
    for test in ast.parse(text).body:
        for mark in getattr(test, "decorator_list", ()):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.silent_bug":
                kind, elsewhere, here, *reports = (
                    ast.literal_eval(argument) for argument in mark.args
                )
                links = ", ".join(_link(report) for report in reports)
                yield (
                    kind,
                    f"{elsewhere} ({links})" if links else elsewhere,
                    here,
                    f"[{test.name}](../{file})",
                )


def _link(report: str) -> str:
    repository, _, number = report.partition("#")
    return f"[{repository.partition('/')[2]}#{number}](https://github.com/{repository}/issues/{number})"
