"""The page of `alignkit data browse`: what it finds, shows and marks, through its server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("rensa")

from planted_rows import PERSONAL, PLANTED, plant

from alignkit.cli import main
from alignkit.errors import DataError
from alignkit.plugins import load_plugins
from alignkit.tokens.encoding import Encoder
from alignkit_apps.data.browse import PAGE, BrowseApi, Marks
from alignkit_apps.data.browse_page import make_page
from alignkit_apps.data.clean import faults
from alignkit_apps.data.corpus import corpus_of, entry, text_of
from alignkit_apps.web.formatted import LONGEST
from alignkit_apps.web.guard import Sessions
from tests.apps.label.injections import INJECTIONS
from tests.apps.label.pages import Page, filled, opened
from tests.stores import event, pair

ROWS: list[Any] = [
    {"prompt": "Why is the sky blue?", "chosen": "**Light** scatters.", "rejected": "No idea.", "score": 10},
    {"prompt": 'What does "blue" mean?\nIn words.', "chosen": "A color: größer.", "rejected": "Sad.", "score": 1},
    {"prompt": "Name a topic.", "chosen": "The weather." * 9, "rejected": "Rain.", "score": 2},
    {"prompt": 7, "chosen": "A", "rejected": "B"},
]
ROWS[0]["topic"], ROWS[1]["topic"], ROWS[2]["nested"] = "sky", None, [{"deep": ["x", None, {"deeper": "BLUE"}]}]


class Browsed:
    """The page of a file, in a browser that is no browser."""

    def __init__(self, path: Path, model: str | None = None, look: bool = True):
        load_plugins()
        self.options = entry(str(path))
        corpus = corpus_of(self.options.data)
        self.marks = Marks(path.parent / "bad.jsonl", corpus.files)
        encoder = None if model is None else Encoder(*text_of(model))
        self.api = BrowseApi(corpus, self.marks, encoder)
        if look:
            self.api.look(self.options)
        sessions = Sessions(["ada"])
        self.page: Page = opened(make_page(self.api, sessions), sessions)

    def post(self, name: str, status: int = 200, **message: Any) -> Any:
        answer = self.page.post(name, message, "browse")
        assert answer.status_code == status, answer.text
        return answer.json()

    def numbers(self, **wanted: Any) -> list[int]:
        found = self.post("rows", **wanted)
        assert found["total"] == len(found["rows"]) or found["total"] > PAGE
        return [row["number"] for row in found["rows"]]


@pytest.fixture
def browsed(tmp_path: Path) -> Callable[..., Browsed]:
    def make(rows: list[Any] = ROWS, name: str = "rows.jsonl", **more: Any) -> Browsed:
        text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return Browsed(tmp_path / name, **more)

    return make


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({}, [1, 2, 3, 4]),
        ({"text": "blue"}, [1, 2, 3]),  # in upper case, and deep inside
        ({"text": "topic"}, [3]),  # said, and not the name of a column
        ({"text": 'does "BLUE" mean?\nin'}, [2]),  # what JSON escapes
        ({"text": "GRÖSSER"}, []),
        ({"text": "GRÖßER"}, [2]),
        ({"text": ".*"}, []),  # no pattern
        ({"text": "1", "column": "score"}, [1, 2]),
        ({"text": "1", "column": "score", "whole": True}, [2]),
        ({"text": "sky", "column": "topic"}, [1]),
        ({"text": "", "column": "topic", "whole": True}, [2, 3, 4]),  # without a value
        ({"text": "sky", "column": "nowhere"}, []),
        ({"least": 50}, [3]),
        ({"most": 4}, [2]),  # one of two answers
        ({"least": 6, "most": 9}, [1]),
        ({"flag": "unreadable"}, [4]),
        ({"flag": "any", "text": "blue"}, []),
    ],
)
def test_rows_that_are_wanted(browsed: Callable[..., Browsed], wanted: dict[str, Any], rows: list[int]) -> None:
    assert browsed().numbers(**wanted) == rows


def test_flags_are_what_clean_finds(tmp_path: Path) -> None:
    plant(tmp_path)
    browsed = Browsed(tmp_path / "train.jsonl")
    found = browsed.post("rows")
    assert found["flags"] == {name: count for name, count in PLANTED.items() if name != "languages"} | {
        "personal": PERSONAL
    }
    assert len(found["rows"]) == PAGE and found["total"] == len(browsed.api.corpus.rows)
    assert browsed.numbers(first=PAGE)[0] == PAGE + 1
    known, _ = faults(browsed.api.corpus, browsed.options)
    (at,) = (at for at, fault in known.items() if fault.rule == "near" and fault.reason.endswith(":21"))
    assert browsed.post("row", at=at)["fault"] == ["near", known[at].reason]


def test_before_rows_are_looked_through(browsed: Callable[..., Browsed]) -> None:
    page = browsed(look=False)
    assert page.post("rows", text="blue")["flags"] is None
    for wanted in ({"flag": "any"}, {"least": 1}):
        assert "not known yet" in page.post("rows", 422, **wanted)["error"]


def test_marks_are_a_file_that_clean_takes(browsed: Callable[..., Browsed], tmp_path: Path) -> None:
    page = browsed()
    (tmp_path / "bad.jsonl").unlink(missing_ok=True)
    assert page.post("mark", at=0, bad=True, reason=" odd ") == {"mark": "odd", "marked": 1}
    page.post("mark", at=2, bad=True, reason="")
    page.post("mark", at=1, bad=True, reason="x")
    page.post("mark", at=1, bad=False, reason="")
    assert page.numbers(flag="marked") == [1, 3] and page.post("row", at=2)["mark"] == "marked by hand"
    again = Browsed(tmp_path / "rows.jsonl")
    assert again.numbers(flag="marked") == [1, 3] and again.post("row", at=0)["mark"] == "odd"
    out = tmp_path / "clean.jsonl"
    words = ("data", "clean", str(tmp_path / "rows.jsonl"), f"marks={tmp_path / 'bad.jsonl'}", "--out", str(out))
    assert main([*words, "personal=false"]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [ROWS[1]]
    removed = [json.loads(line) for line in (tmp_path / "clean.removed.jsonl").read_text().splitlines()]
    assert [(row["rule"], row["reason"]) for row in removed[:2]] == [("marks", "odd"), ("marks", "marked by hand")]


def test_marks_of_files_with_the_same_name_are_about_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [{"prompt": f"{name} {word}", "completion": f"{word} {name}"} for word in ("one", "two", "ten")]
        (tmp_path / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bad = tmp_path / "bad.jsonl"
    given: list[Any] = [{"file": "elsewhere/a/rows.jsonl", "row": 1, "reason": "moved"}, {"row": 3, "reason": "both"}]
    bad.write_text("".join(json.dumps(mark) + "\n" for mark in given), encoding="utf-8")
    marks = Marks(bad, ["a/rows.jsonl", "b/rows.jsonl"])
    assert (marks.rows("a/rows.jsonl"), marks.rows("b/rows.jsonl")) == ([1, 3], [3])
    marks.put("b/rows.jsonl", 2, "odd")
    marks.put("b/rows.jsonl", 3, None)
    out = tmp_path / "clean.jsonl"
    assert main(["data", "clean", "[a/rows.jsonl, b/rows.jsonl]", "marks=bad.jsonl", "--out", str(out)]) == 0
    removed = [json.loads(line) for line in (tmp_path / "clean.removed.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"], row["reason"]) for row in removed] == [
        ("a/rows.jsonl", 1, "moved"),
        ("a/rows.jsonl", 3, "both"),
        ("b/rows.jsonl", 2, "odd"),
    ]


def test_marks_that_somebody_wrote_stay_as_they_are(browsed: Callable[..., Browsed], tmp_path: Path) -> None:
    mine, other = {"row": 2, "reason": "mine", "who": "ada"}, {"file": "other.jsonl", "row": 1, "reason": "b"}
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in (mine, other)), encoding="utf-8")
    page = browsed()
    assert page.numbers(flag="marked") == [2] and page.post("row", at=1)["mark"] == "mine"
    page.post("mark", at=0, bad=True, reason="c")
    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert mine in written and other in written and len(written) == 3
    (tmp_path / "bad.jsonl").write_text('{"row": "one"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.jsonl:1: expected \{row: N"):
        Marks(tmp_path / "bad.jsonl", [])


def test_a_full_disk_leaves_the_marks_as_they_were(browsed: Callable[..., Browsed], tmp_path: Path) -> None:
    page = browsed()
    page.post("mark", at=0, bad=True, reason="a")
    before = (tmp_path / "bad.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", _full)
        assert "disk is full" in page.post("mark", 507, at=1, bad=True, reason="b")["error"]
    assert (tmp_path / "bad.jsonl").read_bytes() == before and page.numbers(flag="marked") == [1]


def _full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_pairs_are_shown_as_they_are_labeled(browsed: Callable[..., Browsed]) -> None:
    row = browsed().post("row", at=0)
    (group,) = row["groups"]
    assert group["prompt"] == [{"role": "user", "text": ROWS[0]["prompt"]}]
    better, worse = group["responses"]
    assert (better["facts"], worse["facts"]) == (["better"], ["worse"])
    assert better["turns"] == [
        {"role": "assistant", "text": "**Light** scatters.", "parts": [["p", "", ["strong", "Light"], " scatters."]]}
    ]
    assert ["topic", "sky"] in group["columns"] and json.loads(row["raw"]) == ROWS[0]
    bad = browsed().post("row", at=3)
    assert bad["groups"] == [] and "prompt" in bad["unread"] and bad["fault"][0] == "unreadable"


def test_rankings_stores_and_rollouts(browsed: Callable[..., Browsed], tmp_path: Path) -> None:
    ranked = {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}
    (group,) = browsed([ranked]).post("row", at=0)["groups"]
    assert [answer["facts"] for answer in group["responses"]] == [["rank 2"], ["rank 1"], ["rank 3"]]
    responses = [{"text": "yes", "scores": {"reward": 0.5}, "source": "p"}, {"text": "no", "scores": {"reward": None}}]
    rollout = {"alignkit": 1, "prompt": [{"role": "user", "content": "Hi"}], "responses": responses}
    (group,) = browsed([rollout]).post("row", at=0)["groups"]
    assert [answer["facts"] for answer in group["responses"]] == [["reward 0.5"], ["reward None"]]
    item = pair("Hi", "Hello!", "What?")
    with filled(tmp_path / "a.feedback", [item]) as store:
        store.submit(event(item, {"side": "B", "margin": "better"}))
    (group,) = Browsed(tmp_path / "a.feedback").post("row", at=0)["groups"]
    said = {answer["turns"][0]["text"]: answer["facts"][0] for answer in group["responses"]}
    assert said["Hello!"] == "worse" and said["What?"] == "better"
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No.", "weight": 0}] * 2
    turns[3] = {"role": "assistant", "content": "Yes."}
    (group,) = browsed([{"messages": turns}]).post("row", at=0)["groups"]
    (answer,) = group["responses"]
    assert [turn["role"] for turn in [*group["prompt"], *answer["turns"]]].count("assistant (not learned)") == 1


def test_tokens_say_which_are_learned(browsed: Callable[..., Browsed]) -> None:
    page = browsed([{"prompt": "Hi there", "completion": "Yes\nso"}], model="tiny")
    prompt, answer = page.post("tokens", at=0)["tokens"]
    assert not any(prompt["learned"]) and all(answer["learned"])
    assert "".join(answer["pieces"]).startswith("Yes\nso") and "learned" in answer["title"]
    assert "--model" in browsed().post("tokens", 422, at=0)["error"]


def test_texts_cannot_run_or_hide_anything(browsed: Callable[..., Browsed]) -> None:
    evil = "".join(INJECTIONS) + "\u202e"
    page = browsed([{"prompt": evil, "completion": evil, evil: evil}], name="<script>alert(1).jsonl")
    assert "<script>alert" not in page.page.html.replace("&lt;", "")
    assert "&lt;script&gt;alert(1)" in page.page.html and "<script>window" not in page.page.html
    answer = page.page.post("row", {"at": 0}, "browse")
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert "\u202e" not in answer.json()["groups"][0]["responses"][0]["turns"][0]["text"]


def test_rows_that_no_page_could_show_whole(browsed: Callable[..., Browsed]) -> None:
    wide = {f"column {n}": n for n in range(200)} | {"prompt": "Hi", "completion": "x" * 10_000_000}
    page = browsed([wide, {"prompt": "Hi", "completion": "Yes."}], model="tiny")
    (group,) = page.post("row", at=0)["groups"]
    text = group["responses"][0]["turns"][0]["text"]
    assert text.endswith(f"[{10_000_000 - LONGEST:,} more characters]") and len(text) < LONGEST + 100
    assert len(group["columns"]) == 100 and group["left"] == ["100 more columns"]
    assert len(page.page.post("row", {"at": 0}, "browse").content) < 200_000
    assert "at most 50,000" in page.post("tokens", 422, at=0)["error"]
    assert page.numbers(least=1_000_000) == [1] and page.numbers(text="yes") == [2]


@pytest.mark.parametrize("message", [{"at": 99}, {"at": -1}, {"at": "0"}, {}, {"at": 0, "more": 1}])
def test_wrong_questions(browsed: Callable[..., Browsed], message: dict[str, Any]) -> None:
    assert browsed().post("row", 422, **message)["error"]


def test_only_the_page_may_ask(browsed: Callable[..., Browsed]) -> None:
    page = browsed()
    client = page.page.client
    assert client.post("/api/browse/rows", json={}).status_code == 403
    client.cookies.clear()
    assert page.page.post("rows", {}, "browse").status_code == 401 and client.get("/").status_code == 401
    assert "alignkit data browse" in client.get("/").text
