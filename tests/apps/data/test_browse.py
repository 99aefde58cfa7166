"""The page of `alignkit data browse`: what it finds and shows, through its server."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("rensa")

from planted_rows import PERSONAL, PLANTED, plant
from starlette.testclient import TestClient

from alignkit.plugins import load_plugins
from alignkit_plugins.data.browse import PAGE, Browsed, make_page
from alignkit_plugins.data.found_rows import encoder_of, entry, read_rows
from alignkit_plugins.people.site import Sessions
from tests.apps.label.injections import INJECTIONS

ROWS: list[Any] = [
    {
        "prompt": "Why is the sky blue?",
        "chosen": "**Light** scatters.",
        "rejected": "No idea.",
        "score": 10,
    },
    {
        "prompt": 'What does "blue" mean?\nIn words.',
        "chosen": "A color: größer.",
        "rejected": "Sad.",
        "score": 1,
    },
    {
        "prompt": "Name a topic.",
        "chosen": "The weather." * 9,
        "rejected": "Rain.",
        "nested": [{"deep": ["x", "BLUE"]}],
    },
    {"prompt": 7, "chosen": "A", "rejected": "B"},
]


def browsed(path: Path, rows: list[Any] | None = None, model: str | None = None) -> Browsed:
    load_plugins()
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = entry(str(path))
    return Browsed(read_rows(options.data), options, None if model is None else encoder_of(model))


def listed(page: Browsed, **query: str) -> list[int]:
    return [int(line["where"].rpartition(":")[2]) for line in page.view(query)["list"]]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({}, [1, 2, 3, 4]),
        ({"text": "blue"}, [1, 2, 3]),  # in upper case, and deep inside
        ({"text": '"BLUE"'}, [2]),
        ({"text": "größer"}, [2]),
        ({"fault": "unreadable"}, [4]),
        ({"fault": "any", "text": "sky"}, []),
        ({"text": "chosen"}, []),  # the name of a column
    ],
)
def test_rows_are_found(tmp_path: Path, query: dict[str, str], rows: list[int]) -> None:
    assert listed(browsed(tmp_path / "rows.jsonl", ROWS), **query) == rows


def test_a_row_is_shown_with_what_is_known_of_it(tmp_path: Path) -> None:
    page = browsed(tmp_path / "rows.jsonl", ROWS, model="tiny")
    row = page.view({"row": "1"})["row"]
    assert [(who, facts) for who, facts, _ in row["said"]] == [
        ("user", []),
        ("better", []),
        ("worse", []),
    ]
    assert row["columns"] == [["score", "1"]] and json.loads(row["raw"]) == ROWS[1]
    prompt, better, _ = row["tokens"]
    assert better["title"].startswith("better: ") and all(
        learned for _, learned in better["pieces"]
    )
    assert "".join(piece for piece, _ in better["pieces"]).startswith("A color: größer.")
    assert not any(learned for _, learned in prompt["pieces"])
    assert page.view({"row": "3"})["row"]["fault"].startswith("unreadable: ")


def test_faults_are_those_that_clean_sees(tmp_path: Path) -> None:
    file, _ = plant(tmp_path)
    planted = {rule: count for rule, count in PLANTED.items() if rule != "languages"}
    assert browsed(file).view({})["faults"] == {
        "any": sum(planted.values()) + PERSONAL,
        **planted,
        "personal": PERSONAL,
    }


def test_long_lists_have_pages(tmp_path: Path) -> None:
    page = browsed(
        tmp_path / "rows.jsonl",
        [{"prompt": f"Question {n} {'x' * n}"} for n in range(2 * PAGE + 1)],
    )
    first, last = page.view({}), page.view({"first": str(2 * PAGE)})
    assert (len(first["list"]), first["earlier"], first["total"]) == (PAGE, "", 2 * PAGE + 1)
    assert first["later"].endswith(f"first={PAGE}")
    assert (len(last["list"]), last["later"]) == (1, "")
    assert page.view({"first": "999999", "row": "-1"})["row"]["where"].endswith(":1")  # no error


def test_the_page_is_for_this_session_and_obeys_nothing_that_a_row_says(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": text, text: text} for text in INJECTIONS]
    sessions = Sessions(["ada"])
    client = TestClient(
        make_page(browsed(tmp_path / "rows.jsonl", rows), sessions), base_url="http://127.0.0.1"
    )
    assert client.get("/").status_code == 401
    assert client.get("/", params={"token": sessions.links["ada"]}).status_code == 200
    for at in range(len(rows)):
        page = client.get("/", params={"row": at, "text": rows[at]["prompt"][:20]})
        inside = page.text.partition("<body")[2]
        tags = set(re.findall(r"<\s*/?\s*([a-zA-Z]+)", inside))
        assert page.status_code == 200 and not tags & {
            "script",
            "img",
            "iframe",
            "svg",
            "math",
            "object",
            "a1",
        }
    assert "rows.jsonl:1" in html.unescape(client.get("/").text)
    assert (
        "script-src" in client.get("/").headers["content-security-policy"]
        or "default-src" in page.headers["content-security-policy"]
    )
