"""The page of `alignkit data browse`: what it shows of each row, and what it does not obey."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from planted_rows import PERSONAL, PLANTED, data, plant

from alignkit_plugins.data_tools import browse
from tests.people.injections import INJECTIONS

ROWS: list[Any] = [
    {"prompt": "Why is the sky blue?", "chosen": "**Light** scatters.", "rejected": "No idea."},
    {"prompt": "Name a topic.", "chosen": "Schön.", "rejected": "Rain.", "note": {"a": [1]}},
    {"prompt": 7, "chosen": "A", "rejected": "ann@example.org"},
]


def page(folder: Path, rows: list[Any]) -> str:
    """The body of the page of some rows, as written."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return written(folder, folder / "rows.jsonl")


def written(folder: Path, file: Path) -> str:
    data("browse", file, "--out", folder / "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "script-src" not in text
    return text.partition("<body")[2]


def test_each_row_is_shown_with_what_is_known_of_it(tmp_path: Path) -> None:
    body = page(tmp_path, ROWS)
    assert "2 conversations, 2 pairs, 1 bad row" in body
    details = body.split("<details")[1:]
    assert len(details) == 3
    assert re.findall("<h3>(.*)</h3>", details[1]) == ["user", "better", "worse", "as it was read"]
    raw = html.unescape(re.findall(r"<pre[^>]*>(.*?)</pre>", details[1], re.S)[0])
    assert json.loads(raw) == ROWS[1] and "Schön" in raw and "personal (0)" in body
    assert 'data-fault="unreadable"' in details[2] and "column 'prompt'" in html.unescape(
        details[2]
    )


def test_faults_are_those_that_clean_sees(tmp_path: Path) -> None:
    body = written(tmp_path, plant(tmp_path)[0])
    assert "ann0@example.org" in body
    planted = {rule: count for rule, count in PLANTED.items() if rule != "languages"}
    for rule, count in {**planted, "personal": PERSONAL}.items():
        assert f"{rule.replace('_', ' ')} ({count})" in body
        assert body.count(f'data-fault="{rule}"') == count


def test_a_page_has_the_first_rows_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "MOST", 2)
    body = page(tmp_path, ROWS)
    assert "the first 2 of 3 rows" in body and body.count("<details") == 2


def test_the_page_obeys_nothing_that_a_row_says(tmp_path: Path) -> None:
    body = page(tmp_path, [{"prompt": text, "completion": text, text: text} for text in INJECTIONS])
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z]+)", body))
    assert not tags & {"script", "img", "iframe", "svg", "math", "object", "a1", "style", "link"}
